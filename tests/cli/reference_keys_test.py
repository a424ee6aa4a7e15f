"""Keys of other libraries are answered with the key to write, and that key exists."""

import pytest

from tunix.cli import dpo_schema, grpo_schema, reference_keys, sft_schema, structure
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
    ],
)
def test_reinforcement_learning_is_told_its_own_keys(key, remedy):
    found = problems_of(grpo_schema.GrpoRun, **{key: 1})
    assert any(p.startswith(f"{key}: known key") and remedy in p for p in found)


def test_a_command_is_not_told_to_write_what_it_does_not_have():
    assert "num_generations" not in reference_keys.notes_for(sft_schema.SftRun)
    assert "max_length" not in reference_keys.notes_for(dpo_schema.DpoRun)
    assert "batch_size" not in reference_keys.notes_for(sft_schema.SftRun)
