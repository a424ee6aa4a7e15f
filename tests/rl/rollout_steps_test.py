"""Runs as a user sees them: logs, completions, faults, interrupts and resumes."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import orbax.checkpoint as ocp
import pytest

from tests.rl import helpers
from tunix.data import prompts as prompt_data
from tunix.rl.monitoring import alarms
from tunix.rl.scoring import rewards
from tunix.sft import hooks, metrics_logger, profiler, progress_bar
from tunix.sft.loop import interrupt
from tunix.utils import json_lines

ROWS = [{"prompts": f"{a}{b}", "answer": a} for a in "ABCDEF" for b in "135"]
DETERMINISTIC = ("reward", "loss", "grad_norm", "completion_length", "mismatch_max", "dead_groups")


def run_settings(directory, *, every=1):
    return {
        "checkpoint_root_directory": str(directory / "checkpoints"),
        "checkpointing_options": ocp.CheckpointManagerOptions(save_interval_steps=every),
        "metrics_logging_options": metrics_logger.MetricsLoggerOptions(
            log_dir=str(directory), flush_every_n_steps=1
        ),
    }


def prompt_batches():
    settings = prompt_data.PromptDataConfig(batch_size=3, num_epochs=None, shuffle_seed=4)
    dataset, _ = prompt_data.load(ROWS, helpers.make_cluster().tokenizer, settings)
    return dataset


def train(
    directory, *, steps, every=1, reward_fns=helpers.share_of_fives, dataset=None, **settings
):
    cluster = helpers.make_cluster(max_steps=steps, **run_settings(directory, every=every))
    learner = helpers.make_learner(cluster, reward_fns, **settings)
    try:
        learner.train(prompt_batches() if dataset is None else dataset)
    finally:
        cluster.close()
    return learner


def log(directory):
    """Everything that does not depend on the clock, by step."""
    rows = json_lines.read(directory / "metrics.jsonl")
    return [(row["step"], *(row[f"train/{name}"] for name in DETERMINISTIC)) for row in rows]


def completions(directory):
    return json_lines.read(directory / "completions.jsonl")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("uninterrupted")
    train(directory, steps=6)
    return directory


def test_every_step_and_every_completion_is_logged(uninterrupted):
    assert [row[0] for row in log(uninterrupted)] == [1, 2, 3, 4, 5, 6]
    rows = completions(uninterrupted)
    assert len(rows) == 6 * 3 * 4
    first = rows[0]
    assert first["step"] == 1
    assert first["rewards"]["share_of_fives"] == first["reward"]
    assert first.keys() >= {"prompt", "completion", "advantage", "finish_reason", "num_tokens"}
    by_prompt = [row["advantage"] for row in rows[:4]]
    assert sum(by_prompt) == pytest.approx(0.0, abs=1e-6)
    metrics = json_lines.read(uninterrupted / "metrics.jsonl")[0]
    for phase in ("rollout", "score", "train", "sync"):
        assert metrics[f"train/time/{phase}"] > 0.0


def test_a_resumed_run_continues_with_the_very_numbers(uninterrupted, tmp_path):
    train(tmp_path, steps=4)
    resumed = train(tmp_path, steps=6)
    assert resumed.global_steps == 6
    assert log(tmp_path) == log(uninterrupted)
    assert completions(tmp_path) == completions(uninterrupted)


def test_steps_behind_the_last_checkpoint_are_done_again_and_logged_once(uninterrupted, tmp_path):
    # As after a kill in step 6: the last checkpoint is that of step 3, the log goes on to 5.
    train(tmp_path, steps=5, every=3)
    shutil.rmtree(tmp_path / "checkpoints" / "5")
    train(tmp_path, steps=6, every=3)
    assert log(tmp_path) == log(uninterrupted)
    assert completions(tmp_path) == completions(uninterrupted)
    dropped = json_lines.read(tmp_path / "metrics.jsonl.dropped")
    assert [row["step"] for row in dropped] == [4, 5]


def test_a_fault_in_a_reward_function_loses_nothing(tmp_path):
    def fails_at_step_three(completions, **columns):
        steps.append(1)
        if len(steps) >= 3:
            raise RuntimeError("boom")
        return helpers.share_of_fives(completions)

    steps = []
    with pytest.raises(rewards.RewardError, match="fails_at_step_three raised RuntimeError: boom"):
        train(tmp_path, steps=6, every=100, reward_fns=fails_at_step_three)
    resumed = helpers.make_cluster(**run_settings(tmp_path))
    assert resumed.actor_trainer.train_steps == 2
    resumed.close()


@pytest.mark.slow
def test_plain_lists_resume_behind_the_batches_already_used(tmp_path):
    dataset = [{"prompts": [f"A{i}", f"B{i}"]} for i in range(4)]
    train(tmp_path / "whole", steps=4, dataset=dataset)
    train(tmp_path / "parts", steps=2, dataset=dataset)
    train(tmp_path / "parts", steps=4, dataset=dataset)
    assert log(tmp_path / "parts") == log(tmp_path / "whole")


def test_a_resumed_run_of_several_updates_per_rollout_skips_no_data(tmp_path):
    dataset = [{"prompts": [f"A{i}"]} for i in range(4)]
    reward = helpers.share_of_odd_characters
    for steps in (2, 4):
        learner = train(tmp_path, steps=steps, dataset=dataset, num_iterations=2, reward_fns=reward)
    assert learner.global_steps == 2
    rows = completions(tmp_path)
    assert [(row["step"], row["prompt"]) for row in rows[::4]] == [(2, "A0"), (4, "A1")]


def test_a_rollout_that_is_begun_is_trained_on_in_full(tmp_path):
    learner = train(tmp_path, steps=1, dataset=[{"prompts": ["A"]}] * 2, num_iterations=2)
    assert learner.rl_cluster.actor_trainer.train_steps == 2
    assert learner.global_steps == 1


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_resume(uninterrupted, tmp_path):
    def interrupts(completions, **columns):
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return helpers.share_of_fives(completions)

    interrupts.__name__ = "share_of_fives"
    steps = []
    with pytest.raises(interrupt.TrainingInterrupted, match="stopped after step 3 and saved"):
        train(tmp_path, steps=6, every=100, reward_fns=interrupts)
    train(tmp_path, steps=6, every=100)
    assert log(tmp_path) == log(uninterrupted)


CHILD = """
import pathlib, sys
from tests.rl import rollout_steps_test
rollout_steps_test.train(pathlib.Path(sys.argv[1]), steps=6, every=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("killed_in_step", [2, 4])
def test_after_kill_9_the_joined_log_is_that_of_an_uninterrupted_run(
    uninterrupted, tmp_path, killed_in_step
):
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    root = pathlib.Path(__file__).parents[2]
    child = subprocess.Popen(command, cwd=root)
    try:
        wait_for_step(child, tmp_path / "completions.jsonl", killed_in_step)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    subprocess.run(command, cwd=root, check=True)
    assert log(tmp_path) == log(uninterrupted)
    assert completions(tmp_path) == completions(uninterrupted)


def wait_for_step(child, path, step):
    """Return as soon as the run has written completions of ``step``."""
    deadline = time.monotonic() + 300
    while child.poll() is None and time.monotonic() < deadline:
        text = path.read_text() if path.exists() else ""
        lines = [line for line in text.split("\n")[:-1] if line]
        if lines and json.loads(lines[-1])["step"] >= step:
            return
        time.sleep(0.002)


def test_a_checkpoint_of_other_training_is_refused(tmp_path):
    cluster = helpers.make_cluster(**run_settings(tmp_path))
    cluster.actor_trainer.save_checkpoint(force=True)
    cluster.close()
    again = helpers.make_cluster(**run_settings(tmp_path))
    with pytest.raises(ValueError, match="was not saved by reinforcement learning"):
        helpers.make_learner(again)
    again.close()


def test_training_outside_the_main_thread_works(tmp_path):
    # Signals cannot be caught there.
    errors = []

    def run():
        try:
            train(tmp_path, steps=1)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not errors


@pytest.mark.slow
def test_alarms_are_in_the_run_directory_and_survive_a_resume(tmp_path):
    def worthless(completions):
        return [0.0] * len(completions)

    for steps in (3, 5):
        cluster = helpers.make_cluster(
            max_steps=steps, alarms=alarms.AlarmConfig(window=2), **run_settings(tmp_path)
        )
        helpers.make_learner(cluster, worthless, log_token_ratio=True).train(prompt_batches())
        cluster.close()
    rows = json_lines.read(tmp_path / "alarms.jsonl")
    assert [(row["step"], row["alarm"]) for row in rows if row["alarm"] == "dead_groups"] == [
        (2, "dead_groups")
    ]
    # Without a signal nothing moves: the policy says what it said when it sampled.
    ratios = [row["log_ratio"] for row in completions(tmp_path)]
    assert len(ratios) == 5 * 3 * 4 and max(map(abs, ratios)) < 1e-5


class Noted(hooks.TrainingHooks):
    """Writes down what happens when, and the losses."""

    def __init__(self):
        self.events, self.losses = [], []

    def on_train_start(self, train_ctx):
        self.events.append("start")

    def on_train_end(self, train_ctx):
        self.events.append("end")

    def on_train_step_start(self, train_ctx):
        self.events.append(f"after {train_ctx.train_steps}")

    def on_train_step_end(self, train_ctx, train_step, train_loss, step_time):
        assert step_time > 0.0 and train_ctx.train_steps == train_step
        self.events.append(f"done {train_step}")
        self.losses.append(train_loss)

    def on_eval_step_start(self, train_ctx): ...

    def on_eval_step_end(self, train_ctx, eval_loss): ...


def test_hooks_and_the_profile_are_those_of_every_training(monkeypatch):
    noted = Noted()
    monkeypatch.setattr(
        jax.profiler, "start_trace", lambda *_, **options: noted.events.append("profile")
    )
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: noted.events.append("profiled"))
    window = profiler.ProfilerOptions(log_dir="unused", skip_first_n_steps=1, profiler_steps=2)
    cluster = helpers.make_cluster(profiler_options=window)
    cluster.actor_trainer.with_training_hooks(noted)
    learner = helpers.make_learner(cluster, num_iterations=2)
    learner.train([{"prompts": ["A", "B"]}] * 3)
    # Rollouts of two optimizer steps; the first that begins in the window, sampling included.
    assert noted.events == [
        *("start", "after 0", "done 2"),
        *("profile", "after 2", "done 4", "profiled"),
        *("after 4", "done 6", "end"),
    ]
    assert noted.losses == helpers.history(cluster, "loss").tolist()


def steps_shown(text):
    """Return the steps that a log file names, as pairs of those taken and those in all."""
    words = [line.split()[1] for line in text.splitlines() if line.startswith("grpo ")]
    return [tuple(int(n) for n in word.split("/")) for word in words]


@pytest.mark.parametrize(
    ("settings", "training", "shown"),
    [
        pytest.param({}, {}, [(i, 6) for i in range(1, 7)], id="a step for every batch"),
        pytest.param(
            {}, {"mini_batch_size": 1}, [(i, 18) for i in range(3, 19, 3)], id="mini-batches"
        ),
        pytest.param({}, {"max_steps": 4}, [(i, 4) for i in range(1, 5)], id="fewer steps"),
        pytest.param({}, {"max_steps": 50}, [(i, 6) for i in range(1, 7)], id="fewer data"),
    ],
)
def test_the_log_says_how_many_steps_there_will_be(settings, training, shown, monkeypatch, capsys):
    monkeypatch.setattr(progress_bar, "PLAIN_INTERVAL_SECONDS", 0.0)
    cluster = helpers.make_cluster(pbar_description="grpo", **training)
    learner = helpers.make_learner(cluster, **settings)
    batches = list(prompt_data.batches_of(ROWS, prompt_data.PromptDataConfig(batch_size=3)))
    assert len(batches) == 6
    learner.train(batches)
    text = capsys.readouterr().err
    assert steps_shown(text) == shown
    assert "about 1 s left" in text and " loss " not in text and "e-0" not in text
    if not training and not settings:
        learner.train(batches[:2])
        assert steps_shown(capsys.readouterr().err) == [(7, 8), (8, 8)]


def test_a_resumed_run_goes_on_counting_to_the_same_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress_bar, "PLAIN_INTERVAL_SECONDS", 0.0)
    settings = prompt_data.PromptDataConfig(batch_size=3)
    for steps, shown in ((2, [(1, 2), (2, 2)]), (50, [(i, 6) for i in range(3, 7)])):
        cluster = helpers.make_cluster(
            max_steps=steps, pbar_description="grpo", **run_settings(tmp_path)
        )
        learner = helpers.make_learner(cluster)
        learner.train(prompt_data.batches_of(ROWS, settings))
        cluster.close()
        assert steps_shown(capsys.readouterr().err) == shown
