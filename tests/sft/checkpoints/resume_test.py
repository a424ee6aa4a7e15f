"""A run that was stopped, however it was stopped, continues bit for bit."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.sft import resumable_run, toys
from tunix.sft.loop import interrupt, step_recorder

STEPS = 11
ROOT = pathlib.Path(__file__).parents[3]


def logged(directory):
    """The metrics of a run by step, without what measures the machine."""
    lines = (pathlib.Path(directory) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if "time" not in k and "system" not in k} for row in rows]


def finish(directory, data=None, **settings):
    trainer = resumable_run.trainer_for(directory, STEPS, **settings)
    start = trainer.train_steps
    trainer.train(resumable_run.train_data() if data is None else data, resumable_run.eval_data())
    trainer.close()
    return start, toys.leaves(trainer.state)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Log and final state of a run that nothing happened to."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    _, state = finish(directory)
    return logged(directory), state


class Crash(resumable_run.Announce):
    def __init__(self, step):
        self.step = step

    def on_train_step_end(self, train_ctx, train_step, train_loss, step_time):
        if train_step == self.step:
            raise RuntimeError("crash")


def crash_at(directory, step, data=None, **settings):
    trainer = resumable_run.trainer_for(directory, STEPS, **settings)
    trainer.with_training_hooks(Crash(step))
    with pytest.raises(RuntimeError, match="crash"):
        trainer.train(
            resumable_run.train_data() if data is None else data, resumable_run.eval_data()
        )
    trainer.close()


def test_the_log_is_complete(uninterrupted):
    rows, _ = uninterrupted
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows if "eval/loss" in row] == [4, 8]


@pytest.mark.parametrize("step", [2, 5, 9])
def test_a_run_that_crashed_continues_bit_for_bit(tmp_path, uninterrupted, step):
    crash_at(tmp_path, step)
    start, state = finish(tmp_path)
    assert start == {2: 1, 5: 3, 9: 6}[step]  # saved at 1, then at every third
    assert logged(tmp_path) == uninterrupted[0]
    toys.assert_bit_identical(state, uninterrupted[1])


def test_the_number_of_steps_in_flight_does_not_matter(tmp_path, uninterrupted):
    crash_at(tmp_path, 8, max_inflight_computations=4)
    finish(tmp_path, max_inflight_computations=1)
    assert logged(tmp_path) == uninterrupted[0]


def test_data_without_a_position_is_skipped_by_count(tmp_path, uninterrupted):
    def plain():
        return iter(resumable_run.train_data().__next__, None)

    crash_at(tmp_path, 6, plain())
    finish(tmp_path, plain())
    assert logged(tmp_path) == uninterrupted[0]


def test_data_that_is_shorter_than_what_was_consumed_is_refused(tmp_path):
    crash_at(tmp_path, 6)
    with pytest.raises(ValueError, match=r"after 6 batches, but train_ds has only 1"):
        finish(tmp_path, [toys.regression(4)])


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    finish(tmp_path)
    start, _ = finish(tmp_path)
    assert start == STEPS
    assert [row["step"] for row in logged(tmp_path)] == list(range(1, STEPS + 1))


def test_what_was_logged_after_the_checkpoint_is_set_aside(tmp_path):
    crash_at(tmp_path, 6)
    before = logged(tmp_path)
    assert before[-1]["step"] > 3
    finish(tmp_path)
    dropped = (tmp_path / "metrics.jsonl.dropped").read_text().splitlines()
    assert [json.loads(line)["step"] for line in dropped] == [
        row["step"] for row in before if row["step"] > 3
    ]


def test_data_that_fails_loses_nothing_that_was_learned_before(tmp_path, uninterrupted):
    class Failing:
        """The data set with a broken row, read in the middle of step 6."""

        def __init__(self):
            self.data, self.reads = resumable_run.train_data(), 0

        def __iter__(self):
            return self

        def __next__(self):
            self.reads += 1
            if self.reads == 12:
                raise OSError("row 12 is broken")
            return next(self.data)

        def get_state(self):
            return self.data.get_state()

        def set_state(self, state):
            self.data.set_state(state)

    trainer = resumable_run.trainer_for(tmp_path, STEPS)
    with pytest.raises(OSError, match="row 12 is broken"):
        trainer.train(Failing(), resumable_run.eval_data())
    trainer.close()
    start, _ = finish(tmp_path)
    assert start == 5
    assert logged(tmp_path) == uninterrupted[0]


def test_a_batch_that_cannot_be_used_loses_nothing_either(tmp_path, uninterrupted):
    batches = []

    def named(batch):
        batches.append(batch)
        # One of the evaluation that is computed ahead, two for each of five steps, two of the
        # evaluation after step 4, and the first of step 6.
        if len(batches) == 14:
            raise KeyError("no column x")
        return batch

    trainer = resumable_run.trainer_for(tmp_path, STEPS).with_gen_model_input_fn(named)
    with pytest.raises(KeyError, match="no column x"):
        trainer.train(resumable_run.train_data(), resumable_run.eval_data())
    trainer.close()
    start, _ = finish(tmp_path)
    assert start == 5
    assert logged(tmp_path) == uninterrupted[0]


def test_skipped_steps_are_counted_across_a_resume(tmp_path):
    def data():
        for number, batch in enumerate(resumable_run.train_data()):
            if number == 2:
                batch = {**batch, "x": batch["x"] * np.nan}
            yield batch

    crash_at(tmp_path, 6, data())
    finish(tmp_path, data())
    assert [row["train/skipped_steps"] for row in logged(tmp_path)] == [0] + [1] * (STEPS - 1)


def start_process(directory):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sft.resumable_run", str(directory), str(STEPS)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process, step):
    for line in process.stdout:
        if line.strip() == f"step {step}":
            return
    raise AssertionError(f"the process ended early:\n{process.stderr.read()}")


def kill_at(directory, step):
    process = start_process(directory)
    wait_for_step(process, step)
    process.kill()
    process.communicate()


def test_a_killed_process_continues_bit_for_bit(tmp_path, uninterrupted):
    kill_at(tmp_path, random.SystemRandom().randint(2, STEPS - 1))
    start, state = finish(tmp_path)
    assert start < STEPS
    assert logged(tmp_path) == uninterrupted[0]
    toys.assert_bit_identical(state, uninterrupted[1])


@pytest.mark.slow
def test_a_process_killed_again_and_again_continues_bit_for_bit(tmp_path, uninterrupted):
    for step in (3, 6, 10):
        kill_at(tmp_path, step)
    finish(tmp_path)
    assert logged(tmp_path) == uninterrupted[0]


def test_an_interrupt_finishes_the_step_saves_and_says_how_to_go_on(tmp_path, uninterrupted):
    process = start_process(tmp_path)
    wait_for_step(process, 5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopping after this step; Ctrl-C again aborts" in err
    steps = [line for line in f"step 5\n{out}".splitlines() if line.startswith("step ")]
    stopped = int(steps[-1].split()[1])
    assert f"stopped after step {stopped} and saved it in {tmp_path}/checkpoints" in out
    assert "run the same command again" in out
    start, _ = finish(tmp_path)
    assert start == stopped
    assert logged(tmp_path) == uninterrupted[0]


def test_an_interrupt_without_checkpoints_says_that_nothing_was_saved():
    from tests.sft import peft_trainer_test

    class Interrupt(resumable_run.Announce):
        def on_train_step_end(self, *args):
            os.kill(os.getpid(), signal.SIGINT)

    trainer = peft_trainer_test.make().with_training_hooks(Interrupt())
    with pytest.raises(interrupt.TrainingInterrupted, match="step 1; nothing was saved"):
        trainer.train(peft_trainer_test.batches(3))
    assert trainer.train_steps == 1


def test_an_interrupt_before_the_first_step_promises_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        step_recorder.StepRecorder, "restart_clock", lambda _: os.kill(os.getpid(), signal.SIGINT)
    )
    trainer = resumable_run.trainer_for(tmp_path, 3)
    with pytest.raises(interrupt.TrainingInterrupted, match="before the first step; nothing was"):
        trainer.train(resumable_run.train_data())
    trainer.close()
