"""Rollouts made ahead where roles have devices of their own: the numbers of one device."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests import virtual_devices
from tests.rl import async_run, rollout_steps_test
from tests.rl.collecting import ahead_test as runs

NUMBERS = ("loss", "grad_norm", "kl", "reward", "staleness", "off_policy_kl", "carried_tokens")


def run(folder, /, **by_name):
    """Run each of the settings on eight devices, and return what they say."""
    texts = [json.dumps({"directory": str(folder / n), **s}) for n, s in by_name.items()]
    said = virtual_devices.run("tests.rl.async_run", *texts, devices=8)
    return dict(zip(by_name, said, strict=True))


def assert_alike(folder, said, name, other):
    """What is sampled is the same, numbers and weights but for the order of sums."""
    texts = [[row["completion"] for row in runs.completions(folder / n)] for n in (name, other)]
    assert texts[0] == texts[1]
    assert runs.versions(folder / name) == runs.versions(folder / other)
    for found, expected in zip(runs.log(folder / name), runs.log(folder / other), strict=True):
        for key in (f"train/{k}" for k in (*NUMBERS, "critic/loss", "critic/grad_norm")):
            assert (key in found) == (key in expected), key
            if key in found:
                np.testing.assert_allclose(
                    found[key], expected[key], rtol=1e-5, atol=1e-6, err_msg=key
                )
    for a, b in zip(said[name]["weights"], said[other]["weights"], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=0)


def test_one_step_ahead_on_devices_apart_gives_the_numbers_of_one_device(tmp_path):
    ahead = {"algorithm": "grpo", "steps": 3, "beta": 0.0, "off_policy_steps": 1}
    said = run(tmp_path, one=ahead, split=ahead | {"layout": "split"})
    assert said["split"]["actor"] == [0, 1, 2, 3] and said["split"]["rollout"] == [4, 5]
    assert said["one"]["actor"] == said["one"]["rollout"] == [0]
    assert runs.versions(tmp_path / "split") == [{0}, {0}, {1}]
    assert_alike(tmp_path, said, "split", "one")


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["colocated", "split"])
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_without_staleness_the_threads_give_the_bits_of_the_loop(tmp_path, layout, algorithm):
    plain = {"algorithm": algorithm, "steps": 4, "layout": layout}
    said = run(tmp_path, plain=plain, threads=plain | {"through_threads": True})
    runs.assert_equal_runs(tmp_path / "threads", tmp_path / "plain")
    assert said["threads"] == said["plain"]


CASES = {
    "one ahead": {"algorithm": "grpo", "off_policy_steps": 1},
    "two ahead": {
        "algorithm": "grpo",
        "off_policy_steps": 2,
        "rollout_correction": "truncated-token",
    },
    "adapters": {"algorithm": "grpo", "off_policy_steps": 1, "is_lora": True},
    "partial": {"algorithm": "grpo", "partial_rollout_tokens": 2},
    "partial, one ahead": {
        "algorithm": "grpo",
        "partial_rollout_tokens": 2,
        "off_policy_steps": 1,
    },
    "ppo": {
        "algorithm": "ppo",
        "off_policy_steps": 1,
        "rollout_correction": "truncated-token",
    },
    "ppo, adapters": {"algorithm": "ppo", "off_policy_steps": 1, "is_lora": True},
    "ppo, shared": {"algorithm": "shared", "off_policy_steps": 1, "partial_rollout_tokens": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_what_is_ahead_gives_the_numbers_of_one_device_on_every_layout(tmp_path, case):
    settings = CASES[case] | {"steps": 5}
    said = run(tmp_path, **{n: settings | {"layout": n} for n in async_run.LAYOUTS})
    ahead = settings.get("off_policy_steps", 0)
    if "partial_rollout_tokens" not in settings:
        expected = [{max(0, step - ahead)} for step in range(5)]
        assert runs.versions(tmp_path / "one") == expected
    for name in ("colocated", "split"):
        assert_alike(tmp_path, said, name, "one")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["one ahead", "partial, one ahead", "ppo"])
def test_after_kill_9_on_devices_apart_the_joined_log_is_that_of_a_whole_run(tmp_path, case):
    settings = CASES[case] | {"steps": 6, "every": 2, "layout": "split"}
    run(tmp_path, whole=settings)
    directory = tmp_path / "killed"
    text = json.dumps({"directory": str(directory), **settings})
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.rl.async_run", text],
        cwd=pathlib.Path(__file__).parents[2],
        env=os.environ | virtual_devices.environment(8),
        stdout=subprocess.DEVNULL,
    )
    try:
        rollout_steps_test.wait_for_step(child, directory / "completions.jsonl", 3)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    run(tmp_path, killed=settings)
    runs.assert_equal_runs(directory, tmp_path / "whole")
