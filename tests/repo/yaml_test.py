"""Every YAML file that a user is pointed to fits the schema."""

import pytest

from tests.repo import source
from tunix.cli import config
from tunix.cli.schemas import (
    dpo_schema,
    grpo_schema,
    ppo_schema,
    reference_keys,
    reward_schema,
    schema,
    sft_schema,
    structure,
)

SCHEMAS = {
    "sft": sft_schema.SftRun,
    "dpo": dpo_schema.DpoRun,
    "reward": reward_schema.RewardRun,
    "quickstart": grpo_schema.GrpoRun,
    "first_run": grpo_schema.GrpoRun,
    "grpo": grpo_schema.GrpoRun,
    "gsm8k": grpo_schema.GrpoRun,
    "ppo": ppo_schema.PpoRun,
}
EXAMPLES = sorted((source.ROOT / "examples").rglob("*.yaml"))


def build(run_class: type[schema.RunOptions], *arguments: str) -> schema.RunOptions:
    values = config.load(arguments, {}, []).values
    return structure.structure(run_class, values, notes={}, source=arguments[0])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_fits_the_schema(path):
    run = build(SCHEMAS[path.parent.name], str(path))
    assert run.run_dir is None, "an example leaves the choice of the directory to its user"


def test_there_are_examples_of_every_command():
    assert {SCHEMAS[path.parent.name] for path in EXAMPLES} == {
        sft_schema.SftRun,
        dpo_schema.DpoRun,
        reward_schema.RewardRun,
        grpo_schema.GrpoRun,
        ppo_schema.PpoRun,
    }


@pytest.mark.parametrize(
    ("run_class", "more"),
    [
        (sft_schema.SftRun, ["data_path=x"]),
        (grpo_schema.GrpoRun, ["task=larger_number", "num_train_epochs=1"]),
    ],
)
def test_the_base_config_states_the_defaults(run_class, more):
    based = build(run_class, "base_config.yaml", "model_config.model_id=x", *more)
    values = {"model_config": {"model_id": "x"}} | dict(
        item.split("=") for item in more if "epochs" not in item
    )
    if run_class is grpo_schema.GrpoRun:
        values["num_train_epochs"] = 1
    assert based == structure.structure(run_class, values, notes={}, source="defaults")


def test_no_note_hides_a_key_that_is_live():
    """A key with a note is one that no schema knows, or one of another command."""
    others = {"rl_training_config.critic_optimizer_config": ppo_schema.PpoRun}
    for run_class in (
        sft_schema.SftRun,
        dpo_schema.DpoRun,
        reward_schema.RewardRun,
        grpo_schema.GrpoRun,
        ppo_schema.PpoRun,
    ):
        minimal = {"model_config": {"model_id": "x"}}
        for key in reference_keys.NOTES:
            if others.get(key) is run_class:
                continue
            raw = dict(minimal)
            target, parts = raw, key.split(".")
            for part in parts[:-1]:
                target[part] = dict(target.get(part, {}))
                target = target[part]
            target[parts[-1]] = None
            with pytest.raises(ValueError, match="key"):
                structure.structure(run_class, raw, notes=reference_keys.NOTES, source="x")
