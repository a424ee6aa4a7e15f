"""Batches that no machine holds are refused with the settings, before anything is allocated."""

import pytest

from tunix.cli import command
from tunix.cli.schemas import dpo_schema, grpo_schema, ppo_schema, sft_schema
from tunix.utils import config as config_lib

RL = "task: larger_number\nnum_train_epochs: 1\n"
DATA = "data_path: x.jsonl\n"


def parse(tmp_path, run_class, text):
    path = tmp_path / "run.yaml"
    path.write_text("model_config: {model_id: x}\n" + text)
    return command.parse(["tunix", str(path)], run_class, "")


@pytest.mark.parametrize(
    ("run_class", "head", "setting"),
    [
        (sft_schema.SftRun, DATA, "batch_size: 1000000000"),
        (sft_schema.SftRun, DATA, "max_target_length: 1000000000"),
        (dpo_schema.DpoRun, DATA, "batch_size: 1000000000"),
        (dpo_schema.DpoRun, DATA, "max_prompt_length: 1000000000"),
        (dpo_schema.DpoRun, DATA, "max_response_length: 1000000000"),
        (grpo_schema.GrpoRun, RL, "batch_size: 1000000000"),
        (grpo_schema.GrpoRun, RL, "grpo_config: {num_generations: 1000000000}"),
        (grpo_schema.GrpoRun, RL, "rollout_config: {max_prompt_length: 1000000000}"),
        (ppo_schema.PpoRun, RL, "batch_size: 1000000000"),
    ],
)
def test_a_batch_that_no_machine_holds_is_refused(tmp_path, run_class, head, setting):
    with pytest.raises(config_lib.ConfigError) as caught:
        parse(tmp_path, run_class, head + setting)
    (problem,) = caught.value.problems
    assert "1000000000" in problem
    assert problem.endswith("at most 268,435,456 are possible; lower one of them")
    assert parse(tmp_path, run_class, head + setting.replace("1000000000", "1000")).run


def test_the_largest_batch_is_a_product_of_rows_and_tokens():
    assert not list(config_lib.batch_problems({"a": 2**14}, {"b": 2**13, "c": 2**13}))
    (problem,) = config_lib.batch_problems({"a": 2**14, "d": 2}, {"b": 2**13, "c": 2**13})
    assert problem == (
        "a 16384 x d 2 x (b 8192 + c 8192): a batch of 536,870,912 tokens, and at most "
        "268,435,456 are possible; lower one of them"
    )
    assert not list(config_lib.batch_problems({"a": -(2**20), "d": -(2**20)}, {"b": 1}))
