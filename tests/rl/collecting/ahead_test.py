"""Rollouts made ahead: what they are made with, and that nothing depends on threads."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from tests.rl import helpers, rollout_steps_test
from tunix.rl import algorithm_config, rl_cluster
from tunix.rl.collecting import ahead as ahead_lib
from tunix.rl.collecting import collector, curriculum, source
from tunix.rl.scoring import rewards
from tunix.sft.loop import interrupt
from tunix.utils import config as config_lib
from tunix.utils import json_lines

CLOCK = ("time", "tokens_per_second", "reward_seconds", "system/")


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    left = [t.name for t in set(threading.enumerate()) - before if t.name.startswith("rollout-")]
    assert not left


def train(
    directory,
    *,
    steps,
    ahead=1,
    every=1,
    reward_fns=helpers.share_of_fives,
    dataset=None,
    rollout=helpers.ROLLOUT,
    **settings,
):
    options = rollout_steps_test.run_settings(directory, every=every)
    cluster = helpers.make_cluster(max_steps=steps, rollout=rollout, **options)
    learner = helpers.make_learner(cluster, reward_fns, off_policy_steps=ahead, **settings)
    try:
        learner.train(rollout_steps_test.prompt_batches() if dataset is None else dataset)
    finally:
        cluster.close()
    return learner


def log(directory):
    """Every metric but the times, and what is about the process."""
    rows = json_lines.read(directory / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not any(t in k for t in CLOCK)} for row in rows]


def completions(directory):
    return json_lines.read(directory / "completions.jsonl")


def versions(directory):
    return [
        {row["policy_version"] for row in completions(directory) if row["step"] == step}
        for step in sorted({row["step"] for row in completions(directory)})
    ]


def assert_equal_runs(found, expected):
    assert log(found) == log(expected)
    assert completions(found) == completions(expected)


@pytest.fixture(scope="module")
def one_behind(tmp_path_factory):
    directory = tmp_path_factory.mktemp("one_behind")
    train(directory, steps=6)
    return directory


def by_hand(directory, *, steps, ahead):
    """The same run in one thread: a copy of all weights, and each rollout with its own."""
    cluster = helpers.make_cluster(max_steps=steps, **rollout_steps_test.run_settings(directory))
    learner = helpers.make_learner(cluster, off_policy_steps=ahead)
    data = iter(rollout_steps_test.prompt_batches())
    weights = [cluster.actor_trainer.copy_weights()]
    for step in range(steps):
        version = max(0, step - ahead)
        cluster.sync_weights(weights[version])
        rollout = learner.new_rollout(step=step, policy_version=version)
        collected = learner.collector.collect(next(data), rollout)
        for metrics in rollout.metrics:
            cluster.buffer_metrics(metrics)
        learner.learn(collected)
        weights.append(cluster.actor_trainer.copy_weights())
        cluster.log_metrics(rl_cluster.Mode.TRAIN, step + 1)
    cluster.close()


def test_each_rollout_is_sampled_with_weights_of_one_age(one_behind, tmp_path):
    assert versions(one_behind) == [{0}, {0}, {1}, {2}, {3}, {4}]
    assert [row["train/staleness"] for row in log(one_behind)] == [0, 1, 1, 1, 1, 1]
    assert [row["train/staleness_max"] for row in log(one_behind)] == [0, 1, 1, 1, 1, 1]
    by_hand(tmp_path, steps=4, ahead=1)
    assert completions(tmp_path) == [row for row in completions(one_behind) if row["step"] <= 4]
    names = ("loss", "grad_norm", "ratio_max", "reward", "staleness")
    for found, expected in zip(log(tmp_path), log(one_behind), strict=False):
        assert [found[f"train/{name}"] for name in names] == [
            expected[f"train/{name}"] for name in names
        ]


def test_through_the_threads_but_without_staleness_it_is_the_synchronous_run(tmp_path, monkeypatch):
    train(tmp_path / "plain", steps=3, ahead=0)
    monkeypatch.setattr(source, "RolloutSource", ahead_lib.AheadSource)
    train(tmp_path / "threads", steps=3, ahead=0)
    assert_equal_runs(tmp_path / "threads", tmp_path / "plain")
    waits = json_lines.read(tmp_path / "threads" / "metrics.jsonl")
    assert all(row["train/time/wait_rollout"] > 0.0 for row in waits)


def test_old_policies_are_told_from_samplers_that_disagree(one_behind):
    first, *later = log(one_behind)
    assert first["train/mismatch_max"] < 1e-5 and "train/off_policy_max" not in first
    assert max(row["train/off_policy_max"] for row in later) > 1e-3
    assert not any("train/mismatch_max" in row for row in later)
    # Without a live group nothing is compared.
    compared = [row for row in later if "train/off_policy_ess" in row]
    assert len(compared) >= 3
    for row in compared:
        assert 0.5 < row["train/off_policy_ess"] <= 1.0
        # A single update, but its ratio is that to the policy which sampled.
        assert row["train/ratio_max"] == pytest.approx(row["train/off_policy_ratio_max"], rel=1e-6)


@pytest.mark.slow
def test_a_resumed_run_trains_on_what_was_in_flight(one_behind, tmp_path):
    train(tmp_path, steps=3)
    train(tmp_path, steps=6)
    assert_equal_runs(tmp_path, one_behind)


@pytest.mark.slow
def test_a_resumed_run_two_behind_and_with_a_gap_equals_one_without(tmp_path):
    train(tmp_path / "whole", steps=6, ahead=2, every=2)
    assert versions(tmp_path / "whole") == [{0}, {0}, {0}, {1}, {2}, {3}]
    for steps in (1, 3, 6):
        train(tmp_path / "parts", steps=steps, ahead=2, every=2)
    assert_equal_runs(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
def test_what_was_in_flight_is_used_when_the_settings_change_too(tmp_path):
    train(tmp_path, steps=3, ahead=2)
    train(tmp_path, steps=7, ahead=0)
    # Rollouts 4 and 5 were on their way; then there is no staleness any more.
    assert versions(tmp_path) == [{0}, {0}, {0}, {1}, {2}, {5}, {6}]
    assert [row["train/staleness"] for row in log(tmp_path)] == [0, 1, 2, 2, 2, 0, 0]


def test_the_next_rollout_is_sampled_while_rewards_are_slow():
    sampled = [threading.Event() for _ in range(5)]
    scored = []

    def waits_for_the_next_sample(completions, **columns):
        scored.append(1)
        assert sampled[len(scored)].wait(timeout=60), "the sampler waits for the rewards"
        return helpers.share_of_fives(completions)

    cluster = helpers.make_cluster(max_steps=3)
    generate, count = cluster.rollout.generate, iter(sampled)

    def noted(*args, **kwargs):
        done = generate(*args, **kwargs)
        next(count).set()
        return done

    cluster.rollout.generate = noted
    helpers.make_learner(cluster, waits_for_the_next_sample, off_policy_steps=1).train(
        [{"prompts": ["AB", "C"]} for _ in range(5)]
    )
    assert cluster.actor_trainer.train_steps == 3


@pytest.mark.slow
def test_a_fault_in_a_reward_function_loses_nothing(one_behind, tmp_path):
    def share_of_fives(completions, **columns):
        steps.append(1)
        if len(steps) >= 3:
            raise RuntimeError("boom")
        return helpers.share_of_fives(completions)

    steps = []
    with pytest.raises(rewards.RewardError, match="share_of_fives raised RuntimeError: boom"):
        train(tmp_path, steps=6, every=100, reward_fns=share_of_fives)
    train(tmp_path, steps=6, every=100)
    assert_equal_runs(tmp_path, one_behind)


@pytest.mark.slow
def test_ctrl_c_finishes_the_step_and_saves_what_is_in_flight(one_behind, tmp_path):
    def share_of_fives(completions, **columns):
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return helpers.share_of_fives(completions)

    steps = []
    with pytest.raises(interrupt.TrainingInterrupted, match=r"stopped after step \d and saved"):
        train(tmp_path, steps=6, every=100, reward_fns=share_of_fives)
    train(tmp_path, steps=6, every=100)
    assert_equal_runs(tmp_path, one_behind)


@pytest.mark.slow
def test_a_fault_while_training_ends_the_threads(tmp_path):
    cluster = helpers.make_cluster(max_steps=4)
    learner = helpers.make_learner(cluster, off_policy_steps=2)

    def fails(groups):
        raise ZeroDivisionError

    learner.assign_credit = fails
    with pytest.raises(ZeroDivisionError):
        learner.train(rollout_steps_test.prompt_batches())


@pytest.mark.slow
def test_evaluation_uses_the_newest_weights_and_changes_nothing(one_behind, tmp_path):
    options = rollout_steps_test.run_settings(tmp_path) | {"eval_every_n_steps": 2}
    cluster = helpers.make_cluster(max_steps=6, **options)
    learner = helpers.make_learner(cluster, off_policy_steps=1)
    learner.train(rollout_steps_test.prompt_batches(), [{"prompts": ["A1", "B3"]}])
    assert completions(tmp_path) == completions(one_behind)
    at_the_end = learner.evaluate([{"prompts": ["A1", "B3"]}], temperature=0.0)
    assert at_the_end.mean_reward == helpers.history(cluster, "greedy/reward", "eval")[-1]
    cluster.close()


def test_the_data_ends_where_it_ends():
    cluster = helpers.make_cluster()
    learner = helpers.make_learner(cluster, off_policy_steps=2)
    learner.train([{"prompts": ["AB", "C"]} for _ in range(2)])
    assert cluster.actor_trainer.train_steps == 2
    without = helpers.make_learner(helpers.make_cluster(), off_policy_steps=2)
    with pytest.raises(ValueError, match="train_ds has no batch"):
        without.train([])


def dapo(directory, steps, **settings):
    def six_or_none(completions, **columns):
        return [float("6" in text) for text in completions]

    return train(directory, steps=steps, reward_fns=six_or_none, dynamic_sampling=True, **settings)


@pytest.mark.slow
def test_dynamic_sampling_draws_in_order_and_resumes(tmp_path):
    dapo(tmp_path / "whole", 5)
    rounds = [row["train/sampling_rounds"] for row in log(tmp_path / "whole")]
    assert max(rounds) > 1.0
    assert versions(tmp_path / "whole") == [{0}, {0}, {1}, {2}, {3}]
    dapo(tmp_path / "parts", 2)
    dapo(tmp_path / "parts", 5)
    assert_equal_runs(tmp_path / "parts", tmp_path / "whole")


class ReleasesFirst(collector.Collector):
    """Gives the engine away and wants it back."""

    def __init__(self, then):
        self.then = then

    def collect(self, batch, rollout):
        rollout.release()
        return collector.Collected(groups=self.then(rollout, batch))


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize(
    "then",
    [
        pytest.param(lambda rollout, batch: rollout.draw(), id="draw"),
        pytest.param(lambda rollout, batch: rollout.groups(batch), id="sample"),
    ],
)
def test_nothing_is_drawn_or_sampled_after_the_engine_was_released(then, ahead):
    learner = helpers.make_learner(helpers.make_cluster(), off_policy_steps=ahead)
    learner.collector = ReleasesFirst(then)
    with pytest.raises(RuntimeError, match=r"draws or samples after it has called release\(\)"):
        learner.train(rollout_steps_test.prompt_batches())


def lessons():
    return curriculum.Curriculum(
        rollout_steps_test.ROWS,
        curriculum.CurriculumConfig(solved_at=0.1, memory=0.0),
        batch_size=3,
        num_batches=None,
        seed=0,
    )


@pytest.mark.slow
def test_a_curriculum_observes_as_late_as_the_weights_and_resumes(tmp_path):
    train(tmp_path / "whole", steps=6, dataset=lessons())
    seen = [row.get("train/curriculum_seen") for row in log(tmp_path / "whole")]
    # The third batch is the first that is drawn after a step.
    assert seen[:2] == [None, None] and seen[2] == 3 / len(rollout_steps_test.ROWS)
    train(tmp_path / "parts", steps=3, dataset=lessons())
    with pytest.raises(ValueError, match="set off_policy_steps to 1"):
        train(tmp_path / "parts", steps=6, ahead=0, dataset=lessons())
    train(tmp_path / "parts", steps=6, dataset=lessons())
    assert_equal_runs(tmp_path / "parts", tmp_path / "whole")


def test_negative_staleness_is_refused():
    with pytest.raises(config_lib.ConfigError, match="off_policy_steps must not be negative"):
        algorithm_config.AlgorithmConfig(off_policy_steps=-1)


CHILD = """
import pathlib, sys
from tests.rl.collecting import ahead_test
ahead_test.train(pathlib.Path(sys.argv[1]), steps=6, every=2, ahead=int(sys.argv[2]))
"""


def assert_survives_kill_9(directory, expected, *, killed_in_step, ahead):
    command = [sys.executable, "-c", CHILD, str(directory), str(ahead)]
    root = pathlib.Path(__file__).parents[3]
    child = subprocess.Popen(command, cwd=root)
    try:
        rollout_steps_test.wait_for_step(child, directory / "completions.jsonl", killed_in_step)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    subprocess.run(command, cwd=root, check=True)
    assert_equal_runs(directory, expected)


def test_after_kill_9_the_joined_log_is_that_of_an_uninterrupted_run(one_behind, tmp_path):
    assert_survives_kill_9(tmp_path, one_behind, killed_in_step=3, ahead=1)


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_kill_9_at_any_step(tmp_path, ahead):
    train(tmp_path / "whole", steps=6, ahead=ahead)
    for step in range(1, 6):
        directory = tmp_path / f"killed_{step}"
        assert_survives_kill_9(directory, tmp_path / "whole", killed_in_step=step, ahead=ahead)


@pytest.mark.slow
def test_a_policy_one_behind_learns_with_and_without_correction(tmp_path):
    for name, settings in {
        "clip": {},
        "corrected": {"rollout_correction": "truncated-token"},
    }.items():
        cluster = helpers.make_cluster(max_steps=40)
        learner = helpers.make_learner(cluster, num_generations=8, off_policy_steps=1, **settings)
        with contextlib.closing(cluster):
            learner.train([{"prompts": helpers.PROMPTS} for _ in range(40)])
            earned = helpers.history(cluster, "reward")
        assert np.mean(earned[-5:]) > 3 * np.mean(earned[:5]), (name, earned)
