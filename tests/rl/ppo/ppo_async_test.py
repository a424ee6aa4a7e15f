"""PPO on rollouts that were made ahead: whose values, of which age, and what a resume keeps."""

import json
import pathlib
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.rl import async_run, rollout_steps_test
from tests.rl.collecting import ahead_test as runs
from tunix.rl import rl_cluster

AHEAD = {"off_policy_steps": 1, "rollout_correction": "truncated-token"}
LEARNED = ("loss", "grad_norm", "kl", "reward", "staleness", "off_policy_kl", "critic/loss")
WIDTH = 8


def values_by_hand(learner, pairs):
    """The critic's value before each token of each completion, unpacked and padded behind."""
    ids = [np.concatenate([group.prompt_ids, member.trained_ids]) for group, member in pairs]
    tokens = jnp.asarray([np.pad(one, (0, WIDTH - len(one))) for one in ids])
    actor = learner.rl_cluster.actor_trainer.model
    if learner.rl_cluster.has_critic:
        values = nnx.jit(lambda model: model(tokens))(learner.rl_cluster.critic_trainer.model)
    else:
        head = actor.value_head
        hidden = nnx.jit(lambda model: model.hidden(tokens)[0])(actor)
        values = hidden @ head.w[...][:, 0] + head.bias[...]
    return [
        row[len(group.prompt_ids) - 1 :][: len(member.trained_ids)]
        for row, (group, member) in zip(np.asarray(values), pairs, strict=True)
    ]


def returns_by_hand(rewards, values, gae_lambda):
    """Generalised advantages by their sum of temporal differences, plus the values."""
    differences = rewards + np.append(values[1:], 0.0) - values
    return values + [
        sum(gae_lambda ** (j - i) * differences[j] for j in range(i, len(values)))
        for i in range(len(values))
    ]


def watch(learner):
    """Compare what each rollout is trained on with the critic just before it is."""
    assign, seen = learner.assign_credit, []

    def watched(groups):
        found = assign(groups)
        pairs = [(group, member) for group in found for member in group.trajectories]
        for (_, member), values in zip(pairs, values_by_hand(learner, pairs), strict=True):
            np.testing.assert_allclose(member.values, values, atol=2e-6)
            rewards = np.zeros(len(values))
            rewards[-1] = member.reward
            expected = returns_by_hand(rewards, values, learner.algo_config.gae_lambda)
            np.testing.assert_allclose(member.returns, expected, atol=2e-6)
        seen.append(max(float(np.abs(member.values).max()) for _, member in pairs))
        return found

    learner.assign_credit = watched
    return seen


def by_hand(directory, *, steps, ahead, **settings):
    """The run in one thread: a copy of the actor, and each rollout with its own."""
    learner = async_run.make_learner(directory, steps=steps, **settings)
    cluster = learner.rl_cluster
    weights = [cluster.copy_weights()]
    for step in range(steps):
        version = max(0, step - ahead)
        cluster.sync_weights(weights[version])
        rollout = learner.new_rollout(step=step, policy_version=version)
        collected = learner.collector.collect(async_run.DATA[step], rollout)
        for metrics in rollout.metrics:
            cluster.buffer_metrics(metrics)
        learner.learn(collected)
        weights.append(cluster.copy_weights())
        cluster.log_metrics(rl_cluster.Mode.TRAIN, step + 1)
    cluster.close()


@pytest.mark.parametrize("algorithm", ["ppo", pytest.param("shared", marks=pytest.mark.slow)])
def test_samples_are_old_and_values_are_of_the_critic_that_learns_from_them(tmp_path, algorithm):
    settings = {"algorithm": algorithm, "steps": 4, "beta": 0.0, **AHEAD}
    learner = async_run.make_learner(tmp_path / "ahead", **settings)
    seen = watch(learner)
    learner.train(async_run.DATA)
    learner.rl_cluster.close()
    # The critic began at 0 and had learned when the second rollout, made before, was trained on.
    assert seen[0] == 0.0 < min(seen[1:])
    assert runs.versions(tmp_path / "ahead") == [{0}, {0}, {1}, {2}]

    by_hand(tmp_path / "by_hand", ahead=1, **settings)
    assert runs.completions(tmp_path / "by_hand") == runs.completions(tmp_path / "ahead")
    rows = [runs.log(tmp_path / name) for name in ("by_hand", "ahead")]
    for found, expected in zip(*rows, strict=True):
        for name in LEARNED:
            assert found.get(f"train/{name}") == expected.get(f"train/{name}"), name
    assert all(row["train/off_policy_kl"] > 0.0 for row in rows[1][1:])


def settings_of(directory, **settings):
    return json.dumps({"directory": str(directory), "steps": 6, **settings})


def assert_survives_kill_9(directory, expected, *, killed_in_step, **settings):
    command = [sys.executable, "-m", "tests.rl.async_run", settings_of(directory, **settings)]
    root = pathlib.Path(__file__).parents[3]
    child = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL)
    try:
        rollout_steps_test.wait_for_step(child, directory / "completions.jsonl", killed_in_step)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
    runs.assert_equal_runs(directory, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"algorithm": "ppo", **AHEAD}, id="separate"),
        pytest.param({"algorithm": "shared", **AHEAD, "num_iterations": 2}, id="shared, 2 epochs"),
        pytest.param({"algorithm": "ppo", **AHEAD, "off_policy_steps": 2}, id="two ahead"),
        pytest.param({"algorithm": "ppo", **AHEAD, "partial_rollout_tokens": 2}, id="partial"),
        pytest.param({"algorithm": "shared", "partial_rollout_tokens": 2}, id="partial, in step"),
    ],
)
def test_after_kill_9_the_joined_log_is_that_of_an_uninterrupted_run(tmp_path, settings):
    async_run.train(tmp_path / "whole", steps=6, **settings)
    for step in (2, 4):
        directory = tmp_path / f"killed_{step}"
        assert_survives_kill_9(
            directory, tmp_path / "whole", killed_in_step=step, every=2, **settings
        )
