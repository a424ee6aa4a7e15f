"""Every key of ``tunix grpo`` and ``tunix ppo`` reaches what it is about.

A table says of each key what is changed; a key without an entry is a failure. What the settings
of the library's own classes change is in ``tests/rl/live_settings_test.py``.
"""

import dataclasses
import json
import re
import types

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.repo import configs, source
from tunix.cli.loading import build, rl_models
from tunix.cli.schemas import grpo_schema, ppo_schema, rl_schema, schema, structure
from tunix.data import prompts
from tunix.models import automodel
from tunix.rl.cluster import cluster_config
from tunix.rl.objectives import shared_critic
from tunix.rl.rollout import base_rollout
from tunix.sft import run_directory
from tunix.sft.dpo import reward_model_files
from tunix.utils import config as config_lib

CHANGES = {
    "RLRun.task": {
        "task": "multiplication",
        "data_path": None,
        "eval_data_path": None,
        "reward_functions": [],
        "rollout_config.max_prompt_length": 200,
        "evaluation.num_questions": 8,
    },
    "RLRun.data_path": {"data_path": "other.jsonl"},
    "RLRun.eval_data_path": {"eval_data_path": "other.jsonl"},
    "PromptConfig.prompt_column": {"prompt_column": "question"},
    "PromptConfig.system_prompt": {"system_prompt": "Be brief."},
    "PromptConfig.too_long": {"too_long": "filter", "rollout_config.max_prompt_length": 20},
    "PromptConfig.solve_rate_column": {"solve_rate_column": "rate", "max_solve_rate": 0.9},
    "PromptConfig.min_solve_rate": {"solve_rate_column": "rate", "min_solve_rate": 0.3},
    "PromptConfig.max_solve_rate": {"solve_rate_column": "rate", "max_solve_rate": 0.6},
    "RLRun.curriculum": {"curriculum": {}},
    "RLRun.reward_functions": {"reward_functions": ["rewards.py", "more.py"]},
    "RLRun.reward_model_config": {"reward_model_config.model_id": "judge"},
    "PromptConfig.batch_size": {"batch_size": 3},
    "RLRun.num_train_epochs": {"num_train_epochs": 3},
    "EngineConfig.offload_to_cpu": {"offload_to_cpu": True},
    "EngineConfig.rollout_engine": {"rollout_engine": "mock"},
    "EngineConfig.verify_weight_sync": {"verify_weight_sync": True},
    "EngineOptions.kv_cache_size": {"rollout_config.engine.kv_cache_size": 999},
    "NativeEngine.slots": {"rollout_config.engine.slots": 3},
    "RLRun.role_to_mesh": {"role_to_mesh.actor": {"shape": [1], "axis_names": ["fsdp"]}},
    "GrpoRun.algorithm": {"algorithm": "gspo"},
    "GrpoRun.grpo_config": {"grpo_config.epsilon": 0.1},
    "PpoRun.ppo_config": {"ppo_config.critic_backbone": "shared"},
    "RolloutOptions.total_generation_steps": {"rollout_config.total_generation_steps": 7},
    "SamplingConfig.max_prompt_length": {"rollout_config.max_prompt_length": 50},
    "SamplingConfig.temperature": {"rollout_config.temperature": 0.5},
    "SamplingConfig.top_p": {"rollout_config.top_p": 0.5},
    "SamplingConfig.top_k": {"rollout_config.top_k": 5},
    "SamplingConfig.eos_tokens": {"rollout_config.eos_tokens": [7]},
    "RLTrainingOptions.actor_optimizer_config": {
        "rl_training_config.actor_optimizer_config.learning_rate": 0.5
    },
    "UpdateConfig.mini_batch_size": {"rl_training_config.mini_batch_size": 1},
    "UpdateConfig.train_micro_batch_size": {"rl_training_config.train_micro_batch_size": 1},
    "UpdateConfig.rollout_micro_batch_size": {"rl_training_config.rollout_micro_batch_size": 3},
    "UpdateConfig.compute_logps_micro_batch_size": {
        "rl_training_config.compute_logps_micro_batch_size": 1
    },
    "UpdateConfig.alarms": {"rl_training_config.alarms": None},
    "PPOTrainingOptions.critic_optimizer_config": {
        "rl_training_config.critic_optimizer_config.learning_rate": 0.5
    },
    "HeldModel.model_id": {"reward_model_config.model_id": "other"},
    "HeldModel.model_source": {"reward_model_config.model_source": "local"},
    "HeldModel.dtype": {"reward_model_config.dtype": "bfloat16"},
    "HeldModel.precision": {"reward_model_config.precision": "exact"},
    "EvaluationOptions.num_questions": {"evaluation.num_questions": 16},
}
BASES = {
    "PromptConfig.too_long": {"rollout_config.max_prompt_length": 20},
    "HeldModel": {"reward_model_config.model_id": "judge"},
    "EvaluationOptions.num_questions": {
        "task": "multiplication",
        "rollout_config.max_prompt_length": 200,
        "evaluation.num_questions": 8,
        "data_path": None,
        "eval_data_path": None,
        "reward_functions": [],
    },
}
"""What a key is compared with, where that is not the plain run."""

ELSEWHERE = {
    "RLRun.python_files": "tests/cli/loading/python_files_test.py",
    "RLRun.role_to_mesh": "tests/cli/schemas/role_meshes_test.py",
    "EvaluationOptions.samples_per_question": "tests/cli/grpo_main_test.py",
    "EvaluationOptions.num_shown": "tests/cli/grpo_main_test.py",
    "EvaluationConfig.accuracy_function": "tests/cli/grpo_main_test.py",
    "NativeEngine.kind": "tests/cli/rollout_engine_test.py",
}
"""Has a test of its own: the file that sets it."""

SCHEMAS = {module.__name__ for module in (rl_schema, grpo_schema, ppo_schema)}
INHERITED = (
    prompts.PromptConfig,
    cluster_config.EngineConfig,
    cluster_config.EvaluationConfig,
    cluster_config.UpdateConfig,
    base_rollout.EngineOptions,
    base_rollout.SamplingConfig,
    schema.HeldModel,
)
"""What these schemas share with the classes that scripts use."""


def test_every_key_has_an_entry():
    keys = {
        f"{cls.__name__}.{name}"
        for cls in configs.config_classes()
        if cls.__module__ in SCHEMAS or cls in INHERITED
        for name in configs.new_fields(cls)
        if not configs.is_block(cls, name) or f"{cls.__name__}.{name}" in CHANGES
    }
    entries = [*CHANGES, *ELSEWHERE]
    assert keys - set(entries) == set(), "say in a table here what these keys change"
    assert set(entries) - keys == set(), "these keys are gone"


@pytest.mark.parametrize("key", list(ELSEWHERE))
def test_the_file_that_is_named_sets_the_key(key):
    name = key.rpartition(".")[2]
    assert re.search(rf"\b{name}\b", (source.ROOT / ELSEWHERE[key]).read_text())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a directory of questions and rewards."""
    folder = tmp_path_factory.mktemp("live")
    for name, words in (("train", "abcdef"), ("eval", "xyz"), ("other", "uvwrst")):
        rows = [
            {"prompt": f"Say {w}", "question": f"What of {w}", "rate": i / 5, "length": 1}
            for i, w in enumerate(words)
        ]
        rows[-1]["prompt"] += "!" * (20 if name == "train" else 0)
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("rewards", "more"):
        text = f"def of_{name}(prompts, completions): return [1.0] * len(prompts)\n"
        (folder / f"{name}.py").write_text(text)
    return folder


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return automodel.AutoModel.from_pretrained(tiny_model)[0]


def settings_of(files, *changes):
    """Return nested settings from dotted ones; paths are those of ``files``."""
    plain = {
        "data_path": "train.jsonl",
        "eval_data_path": "eval.jsonl",
        "reward_functions": ["rewards.py"],
        "batch_size": 2,
        "num_train_epochs": 1,
        "rollout_config.total_generation_steps": 4,
        "rollout_config.max_prompt_length": 100,
    }
    for one in changes:
        plain = plain | one
    found: dict = {}
    for dotted, value in plain.items():
        *blocks, name = dotted.split(".")
        place = found
        for block in blocks:
            place = place.setdefault(block, {})
        if name.endswith("data_path") and value is not None:
            value = str(files / value)
        elif name == "reward_functions":
            value = [str(files / one) for one in value]
        place[name] = value
    return {name: value for name, value in found.items() if value is not None}


def rate_of(optimizer):
    """Return what an optimizer makes of a gradient of 1."""
    if optimizer is None:
        return None
    params = {"w": jnp.ones((1,))}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    return float(updates["w"][0])


@pytest.fixture
def observe(files, loaded, tiny_model, monkeypatch, tmp_path):
    """Return a function from settings to everything that is made of them."""
    asked: dict = {}

    def cluster(**given):
        asked.update(given)
        return types.SimpleNamespace(get_rewards=None)

    def judge(path, **options):
        asked["judge"] = (str(path), {k: str(v) for k, v in options.items()})
        return "judge"

    def resolve(name, *, source):
        asked["resolved"] = str(source)
        return tmp_path / name

    monkeypatch.setattr(rl_models.rl_cluster, "RLCluster", cluster, raising=True)
    monkeypatch.setattr(reward_model_files, "load_reward_model", judge)
    monkeypatch.setattr("tunix.cli.loading.reward_model_loading.sources.resolve", resolve)
    monkeypatch.setattr(build, "make_model", lambda options, mesh: (fresh(loaded), tiny_model))

    def observed(run_class, *changes):
        asked.clear()
        raw = {"model_config": {"model_id": tiny_model}} | settings_of(files, *changes)
        chosen = grpo_schema.run_class(raw) if run_class is grpo_schema.GrpoRun else run_class
        run = structure.structure(chosen, raw, notes={}, source="x")
        try:
            _, data = rl_models.make_cluster(run, run_directory.RunDirectory(tmp_path / "run"))
        except ValueError as error:
            return str(error)
        config = asked["cluster_config"]
        training = {
            f.name: str(getattr(config.training_config, f.name))
            for f in dataclasses.fields(config.training_config)
            if not f.name.endswith("optimizer")
        }
        batches = [batch for _, batch in zip(range(8), data.train_ds, strict=False)]
        return {
            "training": training,
            "rates": [
                rate_of(config.training_config.actor_optimizer),
                rate_of(config.training_config.critic_optimizer),
            ],
            "cluster": (
                str(config.rollout_config),
                config.rollout_engine,
                config.offload_to_cpu,
                config.verify_weight_sync,
            ),
            "meshes": str(config.role_to_mesh),
            "roles": [asked[role] is not None for role in ("critic", "reference", "reward")],
            "head": shared_critic.has_value_head(asked["actor"]),
            "judge": (asked.get("judge"), asked.get("resolved")),
            "algorithm": str(run.algo_config),
            "data": str(batches),
            "evaluation": str(data.eval_batch),
            "rewards": [fn.__name__ for fn in data.reward_fns],
            "reports": [str(one) for one in data.reports],
        }

    return observed


def fresh(model):
    """Return another module with the same arrays."""
    return nnx.merge(*nnx.split(model))


@pytest.mark.parametrize("key", list(CHANGES))
def test_it_reaches_what_it_is_about(key, observe):
    is_ppo = key.startswith("PP") or key.startswith("PpoRun")
    run_class = ppo_schema.PpoRun if is_ppo else grpo_schema.GrpoRun
    base = BASES.get(key, BASES.get(key.partition(".")[0], {}))
    plain, changed = observe(run_class, base), observe(run_class, base, CHANGES[key])
    assert plain != changed
    assert isinstance(changed, dict), changed


def test_the_comparison_itself_sees_no_difference_where_there_is_none(observe):
    plain = observe(grpo_schema.GrpoRun)
    assert plain == observe(grpo_schema.GrpoRun, {"seed": 0})
    assert np.isfinite(plain["rates"][0])
    with pytest.raises(config_lib.ConfigError):
        observe(grpo_schema.GrpoRun, {"no_such_key": 1})
