"""A DPO run that is killed at any point continues bit for bit."""

import os
import pathlib
import random
import subprocess
import sys

import pytest

from tests import virtual_devices
from tests.sft import toys
from tests.sft.checkpoints import resume_test
from tests.sft.dpo import resumable_run

STEPS = 9
ROOT = pathlib.Path(__file__).parents[3]


def kill_at(directory, step):
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.sft.dpo.resumable_run", str(directory), str(STEPS)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    resume_test.wait_for_step(process, step)
    process.kill()
    process.communicate()


def assert_continues(tmp_path, kills):
    _, whole = resumable_run.train(tmp_path / "whole", STEPS)
    for step in kills:
        kill_at(tmp_path / "killed", step)
    start, trainer = resumable_run.train(tmp_path / "killed", STEPS)
    assert 0 < start < STEPS
    log = resume_test.logged(tmp_path / "whole")
    assert resume_test.logged(tmp_path / "killed") == log
    assert [row["step"] for row in log] == list(range(1, STEPS + 1))
    assert all("train/rewards/margins" in row for row in log)
    toys.assert_bit_identical(trainer.state, whole.state)


@pytest.mark.slow
def test_a_killed_run_continues_bit_for_bit(tmp_path):
    assert_continues(tmp_path, [random.SystemRandom().randint(2, STEPS - 1)])


@pytest.mark.slow
def test_a_run_killed_five_times_continues_bit_for_bit(tmp_path):
    # Each beyond the checkpoint before it, or the next process would never get there.
    assert_continues(tmp_path, sorted(random.SystemRandom().sample(range(2, STEPS), 5)))


def check_moved(tmp_path, *counts):
    found = virtual_devices.run("tests.sft.dpo.sharded_run", tmp_path, *counts, devices=8)
    assert len(found) == len(counts)
    print(found)
    assert max(x for each in found.values() for x in each.values()) < 1e-5, found


@pytest.mark.slow
def test_a_run_goes_on_onto_twice_as_many_devices(tmp_path):
    check_moved(tmp_path, 1, 2, 4)
