import signal
import subprocess
import sys
import threading
import time

import pytest

from tunix.utils import daemon_threads


@pytest.mark.parametrize("num_threads", [1, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 5, 1_000])
def test_every_item_has_its_result_in_order(count, num_threads):
    calls = []

    def fn(item):
        calls.append(item)
        return -item

    assert daemon_threads.map_all(fn, iter(range(count)), num_threads) == [-i for i in range(count)]
    assert sorted(calls) == list(range(count))


def test_as_many_run_at_once_as_asked_for():
    barrier = threading.Barrier(3, timeout=20)
    assert sorted(daemon_threads.map_all(lambda _: barrier.wait(), range(3), 3)) == [0, 1, 2]
    seen = []

    def counts(item):
        seen.append(threading.current_thread())
        time.sleep(0.01)

    daemon_threads.map_all(counts, range(10), 2)
    assert len(set(seen)) <= 2


@pytest.mark.parametrize("error", [ValueError("two"), KeyboardInterrupt(), SystemExit(3)])
def test_the_first_error_is_raised_after_the_others_were_called(error):
    calls = []

    def fn(item):
        calls.append(item)
        if item == 2:
            raise error
        if item == 4:
            raise OSError("four")

    with pytest.raises(type(error)) as caught:
        daemon_threads.map_all(fn, range(6), 2)
    assert caught.value is error and sorted(calls) == list(range(6))


@pytest.mark.parametrize("settings", ["workers=2", "workers=1", "run_in='process'"])
def test_an_interrupt_ends_a_program_whose_reward_never_returns(settings, tmp_path):
    (tmp_path / "apart.py").write_text(
        # Not ``print``: a thread that is at it when the program ends has the lock of the stream.
        "import os, time\n"
        "def hangs(completion):\n    os.write(1, b'hangs\\n')\n    time.sleep(600)\n"
    )
    (tmp_path / "script.py").write_text(
        "import signal, apart\nfrom tunix.rl.scoring import rewards\n"
        "if __name__ == '__main__':\n"
        # A job in the background of a shell is born without this.
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"    fn = rewards.Reward(fn=apart.hangs, {settings})\n"
        "    rewards.RewardManager([fn])(['?'] * 4, ['x'] * 4, {})\n"
    )
    command = [sys.executable, "script.py"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, text=True, **pipes) as process:
        assert process.stdout.readline() == "hangs\n"
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(60.0) == -signal.SIGINT
        finally:
            process.kill()
        assert process.stderr.read().count("KeyboardInterrupt") == 1
