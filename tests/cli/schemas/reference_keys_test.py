"""Keys of other libraries are answered with the key to write, and that key exists."""

import pytest

from tunix.cli.schemas import (
    dpo_schema,
    grpo_schema,
    ppo_schema,
    reference_keys,
    sft_schema,
    structure,
)
from tunix.utils import config

RAW = {"model_config": {"model_id": "m"}, "data_path": "d"}


def problems_of(run_class, **settings):
    notes = reference_keys.notes_for(run_class)
    with pytest.raises(config.ConfigError) as caught:
        structure.structure(run_class, RAW | settings, notes=notes, source="x")
    return caught.value.problems


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("lr", "write optimizer_config.learning_rate"),
        ("r", "write model_config.lora_config.rank"),
        ("target_modules", "write model_config.lora_config.module_path"),
        ("load_in_4bit", "weight_qtype: nf4"),
        ("report_to", "metrics_logging_options.wandb"),
        ("per_device_train_batch_size", "write batch_size"),
        ("sequence_len", "write max_target_length"),
        ("output_dir", "write run_dir"),
        ("peft_config", "write model_config.lora_config"),
        ("completion_only_loss", "write data_config.train_on"),
        ("bf16", "write model_config.precision: fast"),
        ("fp16", "write model_config.precision: fast"),
    ],
)
def test_keys_of_trl_peft_and_axolotl_get_the_key_to_write(key, remedy):
    (problem,) = problems_of(sft_schema.SftRun, **{key: 1})
    assert problem.startswith(f"{key}: known key of other libraries")
    assert remedy in problem


def test_keys_of_peft_are_known_inside_of_the_block_too():
    adapters = {"rank": 1, "alpha": 1, "r": 8, "target_modules": "all-linear"}
    found = problems_of(dpo_schema.DpoRun, model_config={"model_id": "m", "lora_config": adapters})
    assert [p.split(":")[0] for p in found] == [
        "model_config.lora_config.r",
        "model_config.lora_config.target_modules",
    ]


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("lr", "write rl_training_config.actor_optimizer_config.learning_rate"),
        ("max_steps", "write rl_training_config.max_steps"),
        ("max_completion_length", "write rollout_config.total_generation_steps"),
        ("num_generations", "write grpo_config.num_generations"),
        ("scale_rewards", "write grpo_config.advantage_estimator"),
        ("mask_truncated_completions", "write grpo_config.mask_truncated"),
        ("loss_type", "write algorithm"),
        ("per_device_train_batch_size", "write batch_size, which counts prompts; TRL counts"),
        ("gradient_accumulation_steps", "write rl_training_config.train_micro_batch_size"),
    ],
)
def test_reinforcement_learning_is_told_its_own_keys(key, remedy):
    found = problems_of(grpo_schema.GrpoRun, **{key: 1})
    assert any(p.startswith(f"{key}: known key") and remedy in p for p in found)


def test_a_command_is_not_told_to_write_what_it_does_not_have():
    assert "num_generations" not in reference_keys.notes_for(sft_schema.SftRun)
    assert "max_length" not in reference_keys.notes_for(dpo_schema.DpoRun)
    assert "batch_size" not in reference_keys.notes_for(sft_schema.SftRun)


@pytest.mark.parametrize("run_class", [grpo_schema.GrpoRun, ppo_schema.PpoRun, dpo_schema.DpoRun])
def test_every_key_that_is_to_be_written_is_there(run_class):
    known = set(structure.dotted_keys(run_class))
    for key, text in reference_keys.notes_for(run_class).items():
        if text.startswith("known key of other libraries") and ": write " in text:
            written = text.partition(": write ")[2].split()[0].rstrip(",:;")
            assert written in known, (key, text)


def test_preferences_have_answers_of_a_length_of_their_own():
    (problem,) = problems_of(dpo_schema.DpoRun, max_completion_length=1)
    assert problem.endswith("write max_response_length")


@pytest.mark.parametrize(
    ("run_class", "key", "places"),
    [
        (grpo_schema.GrpoRun, "beta", "grpo_config.beta"),
        (grpo_schema.GrpoRun, "epsilon_high", "grpo_config.epsilon_high"),
        (grpo_schema.GrpoRun, "top_p", "rollout_config.top_p"),
        (grpo_schema.GrpoRun, "max_prompt_length", "rollout_config.max_prompt_length"),
        (grpo_schema.GrpoRun, "num_iterations", "grpo_config.num_iterations"),
        (grpo_schema.GrpoRun, "reward_weights", "grpo_config.reward_weights"),
        (grpo_schema.GrpoRun, "dtype", "model_config.dtype or reward_model_config.dtype"),
        (grpo_schema.GrpoRun, "grpo_config.temperature", "rollout_config.temperature"),
        (
            ppo_schema.PpoRun,
            "b1",
            "rl_training_config.actor_optimizer_config.b1 or "
            "rl_training_config.critic_optimizer_config.b1",
        ),
        (dpo_schema.DpoRun, "loss_type", "dpo_config.loss_type"),
        (sft_schema.SftRun, "lora_config", "model_config.lora_config"),
        (sft_schema.SftRun, "optimizer_config.batch_size", "batch_size or "
         "evaluation.generation.batch_size"),
    ],
)  # fmt: skip
def test_a_key_at_the_wrong_place_gets_every_place_of_that_name(run_class, key, places):
    block, _, name = key.rpartition(".")
    found = problems_of(run_class, **({block: {name: 1}} if block else {name: 1}))
    assert f"unknown key {key!r}: write {places}" in found
