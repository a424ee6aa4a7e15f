"""``rollout_engine`` and ``rollout_config.engine``: what samples, and how large it is made."""

import pytest

from tunix.cli import command
from tunix.cli.loading import python_files
from tunix.cli.schemas import grpo_schema
from tunix.utils import config as config_lib

BASE = "task: larger_number\nnum_train_epochs: 1\nmodel_config: {model_id: x}\n"
OWN = """
from tunix.rl import function_registry
from tunix.rl.rollout import mock_rollout

@function_registry.default_registry.register("rollout_engine", "mine")
class Mine(mock_rollout.MockRollout):
    pass
"""


def parse(tmp_path, *settings):
    path = tmp_path / "run.yaml"
    path.write_text(BASE)
    argv = ["tunix", str(path), *settings]
    return command.parse(argv, grpo_schema.GrpoRun, "", prepare=python_files.load_before_checks).run


def problem_of(tmp_path, *settings):
    with pytest.raises(config_lib.ConfigError) as caught:
        parse(tmp_path, *settings)
    (problem,) = caught.value.problems
    return problem


def test_the_options_of_the_engine_stand_in_its_block(tmp_path):
    run = parse(tmp_path, "rollout_config.engine={kind: native, slots: 5, kv_cache_size: 300}")
    assert run.slots == 5
    assert run.rollout(40).cache_size == 300
    assert parse(tmp_path, "rl_training_config.rollout_micro_batch_size=6").slots == 6
    assert parse(tmp_path).slots is None
    assert parse(tmp_path).rollout(40).cache_size == 256 + 40


def test_an_engine_of_a_file_has_the_name_that_the_file_gives_it(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    run = parse(tmp_path, f"python_files=[{tmp_path / 'own.py'}]", "rollout_engine=mine")
    assert run.rollout_engine == "mine"
    assert parse(tmp_path, "rollout_engine=vanilla").rollout_engine == "vanilla"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["rollout_engine=vanila"], "rollout_engine 'vanila' is not one of"),
        (["rollout_config.engine.kind=vllm"], "rollout_config.engine.kind must be one of 'native'"),
        (
            ["rollout_config.engine.slots=4", "rl_training_config.rollout_micro_batch_size=5"],
            "rollout_config.engine.slots 4 and rl_training_config.rollout_micro_batch_size 5 mean",
        ),
        (
            ["rollout_config.engine.kv_cache_size=100"],
            "rollout_config.engine: kv_cache_size 100 is too small for max_prompt_length 256",
        ),
        (["rollout_config.engine.slots=0"], "rollout_config.engine: slots must be at least 1"),
    ],
)
def test_an_engine_that_cannot_be_is_refused_with_the_settings(tmp_path, settings, said):
    assert problem_of(tmp_path, *settings).startswith(said)
