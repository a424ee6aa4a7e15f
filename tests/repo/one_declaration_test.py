"""Every setting is declared once: what Python sets, YAML sets, under one default."""

import dataclasses
import inspect
import typing
from collections.abc import Iterator

import pytest

from scripts import write_config_reference
from tests.repo import configs
from tunix.cli.schemas import grpo_schema
from tunix.utils import config as config_lib

RUNS = [
    *write_config_reference.COMMANDS.values(),
    *(grpo_schema.run_class({"algorithm": name}) for name in grpo_schema.ALGORITHMS),
]

IN_PYTHON_ONLY = {
    "TransformerConfig": "what a model's files say of it",
    "RopeScaling": "what a model's files say of it",
    "SigLIPConfig": "what a model's files say of it",
    "Reward": "settings of a function, written beside it in a file of reward_functions",
    "SandboxLimits": "settings of a function, written beside it in a file of reward_functions",
    "SamplingParams": "of one request to an engine; `tunix generate` has options for them",
    "ClusterConfig.rollout_config": "a block of YAML of the same name",
    "ClusterConfig.role_to_mesh": "meshes of devices; a block of YAML of the same name",
    "ClusterConfig.training_config": "rl_training_config in YAML",
    "RLTrainingConfig.actor_optimizer": "a pair of functions; actor_optimizer_config in YAML",
    "RLTrainingConfig.critic_optimizer": "a pair of functions; critic_optimizer_config in YAML",
    "TrainingConfig.checkpoint_root_directory": "below run_dir",
    "TrainingConfig.checkpointing_options": "Orbax's class; a block of YAML of the same name",
    "TrainingConfig.metrics_logging_options": "a block of YAML of the same name",
    "TrainingConfig.profiler_options": "a block of YAML of the same name",
    "TrainingConfig.metrics_prefix": "tunix report knows metrics by the names they have",
    "TrainingConfig.pbar_description": "the name of the command",
    "MetricsLoggerOptions.log_dir": "run_dir",
    "MetricsLoggerOptions.run_name": "run_dir names the run",
    "MetricsLoggerOptions.backend_factories": "functions without a name",
    "ProfilerOptions.log_dir": "below run_dir",
    "DPOTrainingConfig.algorithm": "said by the block: orpo_config or dpo_config",
    "DPOTrainingConfig.offload_reference": "reference: offloaded",
    "KTOTrainingConfig.offload_reference": "reference: offloaded",
    "PreferenceTrainingConfig.max_prompt_length": "of batches of strings, which YAML has none of",
    "PreferenceTrainingConfig.max_response_length": "of batches of strings, likewise",
    "SftDataConfig.num_epochs": "num_train_epochs",
    "SftDataConfig.shuffle_seed": "seed",
    "PreferenceDataConfig.num_epochs": "num_train_epochs",
    "PreferenceDataConfig.shuffle_seed": "seed",
    "PromptDataConfig.num_epochs": "num_train_epochs, or max_steps without it",
    "PromptDataConfig.shuffle_seed": "seed",
    "PromptDataConfig.max_prompt_length": "rollout_config.max_prompt_length",
    "PromptDataConfig.last_batch": "a step is a whole batch; evaluation asks every row",
    "RolloutConfig.seed": "seed",
    "RolloutConfig.max_tokens_to_generate": "rollout_config.total_generation_steps",
    "RolloutConfig.return_logprobs": "for callers of RLCluster.generate",
}
"""Class or field -> why YAML has no key of the name, or what is written instead."""

TWO_MEANINGS = {
    "algorithm": "of tunix grpo, and of DPOTrainingConfig",
    "batch_size": "of rows; of replies decoded together in evaluation.generation",
    "checkpointing_options": "a block, and the class of Orbax that it stands for",
    "max_new_tokens": "of replies in evaluation.generation, and of a request to an engine",
    "metric": "of keep_best and of early_stopping",
    "metrics_logging_options": "a block, and what it becomes with a directory",
    "mode": "of keep_best and of early_stopping",
    "profiler_options": "a block, and what it becomes with a directory",
    "role_to_mesh": "a block, and what it becomes with devices",
    "rollout_config": "a block, and what it becomes with the number of tokens",
    "seed": "of a run, and of what it draws",
    "training_config": "a block, and what it becomes with a directory",
}
"""A name that both the command line and the library declare -> why these are two settings."""


def blocks_of(cls: type) -> Iterator[type]:
    """Yield a dataclass and those that its fields may hold."""
    yield cls
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        for option in (hints[field.name], *typing.get_args(hints[field.name])):
            if isinstance(option, type) and dataclasses.is_dataclass(option):
                yield from blocks_of(option)


def declaring(cls: type, name: str) -> type:
    """Return the class that declares a field of ``cls`` last."""
    return next(base for base in cls.__mro__ if name in inspect.get_annotations(base))


def is_of_cli(cls: type) -> bool:
    return cls.__module__.startswith("tunix.cli.")


LIBRARY = [cls for cls in configs.config_classes() if not is_of_cli(cls)]
BLOCKS = {block for run in RUNS for block in blocks_of(run)}
IN_YAML = {(declaring(b, f.name), f.name) for b in BLOCKS for f in dataclasses.fields(b)}


def is_excused(cls: type, name: str) -> bool:
    """Return whether the table says why YAML does not set a field."""
    owners = {base.__name__ for base in cls.__mro__}
    return bool(owners & set(IN_PYTHON_ONLY)) or f"{cls.__name__}.{name}" in IN_PYTHON_ONLY


def test_yaml_sets_whatever_python_sets():
    missing = [
        f"{cls.__name__}.{name}"
        for cls in LIBRARY
        for name in configs.own_fields(cls)
        if (cls, name) not in IN_YAML and not is_excused(cls, name)
    ]
    assert missing == [], "give YAML the key, or say in IN_PYTHON_ONLY why there is none"


def test_what_is_said_to_be_in_python_only_is():
    there = {f"{cls.__name__}.{name}": cls for cls in LIBRARY for name in configs.own_fields(cls)}
    named = {cls.__name__ for cls in LIBRARY}
    stale = [
        key
        for key in IN_PYTHON_ONLY
        if (key not in there and key not in named)
        or ("." in key and (there[key], key.partition(".")[2]) in IN_YAML)
    ]
    assert stale == []


def test_no_setting_is_declared_by_the_library_and_by_the_command_line():
    declared: dict[bool, set[str]] = {True: set(), False: set()}
    for cls in configs.config_classes():
        if not cls.__module__.startswith(("tunix.models.", "tunix.ops.")):  # of a model's files
            declared[is_of_cli(cls)] |= set(configs.own_fields(cls))
    assert sorted(declared[True] & declared[False]) == sorted(TWO_MEANINGS)


@pytest.mark.parametrize("block", sorted(BLOCKS, key=lambda cls: cls.__name__))
def test_a_key_has_the_default_of_every_python_class_with_the_field(block):
    """By construction: they inherit one declaration, and none is declared anew beside it."""
    for cls in LIBRARY:
        mine, theirs = ({f.name: f for f in dataclasses.fields(one)} for one in (block, cls))
        for name in mine.keys() & theirs.keys():
            if declaring(block, name) is declaring(cls, name):
                assert mine[name].default == theirs[name].default
                assert mine[name].default_factory == theirs[name].default_factory


@pytest.mark.parametrize(
    ("field", "key"),
    [(f, key) for f, key in IN_PYTHON_ONLY.items() if key in ("seed", "num_train_epochs")],
)
def test_a_setting_of_the_run_has_the_default_of_what_it_sets(field, key):
    owner, _, name = field.partition(".")
    (cls,) = [cls for cls in LIBRARY if cls.__name__ == owner]
    defaults = {
        f.default
        for run in RUNS
        for f in dataclasses.fields(run)
        if f.name == key and (key == "seed" or is_made_of(run, cls))
    }
    (own,) = [f.default for f in dataclasses.fields(cls) if f.name == name]
    assert defaults == {own}


def is_made_of(run: type, cls: type) -> bool:
    """Return whether a run's settings of data become those of ``cls``."""
    ancestors = {b for block in blocks_of(run) for b in block.__mro__}
    return any(b in ancestors for b in cls.__mro__[1:-1] if b is not config_lib.Config)
