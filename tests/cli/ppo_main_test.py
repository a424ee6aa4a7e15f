import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests.cli import grpo_main_test
from tunix.cli import main, ppo_main
from tunix.cli.loading import trained_model
from tunix.models import automodel
from tunix.utils import json_lines


@pytest.fixture
def base(tmp_path, tiny_model):
    """Return the path of a small job's settings."""
    return grpo_main_test.write_job(
        tmp_path,
        tiny_model,
        batch_size=4,
        num_train_epochs=4,
        ppo_config={"num_generations": 4, "num_iterations": 2, "beta": 0.0},
        rl_training_config={
            "actor_optimizer_config": {"learning_rate": 0.02},
            "critic_optimizer_config": {"learning_rate": 0.01},
        },
    )


def run(base, *overrides, name="run"):
    directory = base.parent / name
    assert ppo_main.main(["tunix ppo", str(base), f"run_dir={directory}", *overrides]) == 0
    return directory


def metrics(directory, name):
    return [row[name] for row in json_lines.read(directory / "metrics.jsonl") if name in row]


def test_actor_and_critic_learn_and_leave_their_story_in_one_directory(base, capsys):
    directory = run(base)
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["steps"] == 16
    assert summary["reward_after"] > summary["reward_before"] + 0.05
    error = metrics(directory, "train/critic/value_error")
    assert error[-1] < 0.5 * error[0]
    assert {p.name for p in directory.iterdir()} >= {"checkpoints", "checkpoints_critic"}
    shown = capsys.readouterr().out
    for expected in ("algorithm  ppo", "sampled reward", "greedy replies", str(directory)):
        assert expected in shown.replace("\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [False, True])
def test_a_shared_backbone_is_trained_and_exported_without_its_value_head(base, adapters):
    directory = run(
        base,
        "ppo_config.critic_backbone=shared",
        "rl_training_config.critic_optimizer_config=null",
        *(["model_config.lora_config={rank: 4, alpha: 8.0}"] if adapters else []),
    )
    assert abs(metrics(directory, "train/critic/value_mean")[-1]) > 1e-3  # it began at 0
    assert not (directory / "checkpoints_critic").exists()
    format_ = ["--format", "merged" if adapters else "hf"]
    assert main.main(["export", str(directory), str(base.parent / "out"), *format_]) == 0
    exported, _ = automodel.AutoModel.from_pretrained(str(base.parent / "out"), precision="exact")
    trained, _ = trained_model.load(trained_model.find(directory, None, None))
    tokens = jnp.asarray([[5, 9, 33]])
    np.testing.assert_allclose(exported(tokens)[0], trained(tokens)[0], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        "rl_training_config.critic_optimizer_config.learning_rate=0.001",
        "rl_training_config.critic_optimizer_config=null",
        "ppo_config.clip_range_value=0.0001",
        "ppo_config.whiten_advantages=false",
        "ppo_config.gae_lambda=0.5",
        "ppo_config.gamma=0.7",
    ],
)
def test_settings_of_the_critic_reach_it(base, setting):
    few = "rl_training_config.max_steps=6"
    names = ("train/critic/loss", "train/loss")
    found = [
        np.asarray([metrics(directory, name) for name in names])
        for directory in (run(base, few, name="plain"), run(base, few, setting, name="other"))
    ]
    assert not np.array_equal(*found)
