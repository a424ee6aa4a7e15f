"""Whatever becomes of a reward function's process: the other replies keep their scores."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests.rl import process_rewards
from tunix.rl.scoring import reward_process, rewards

COMPLETIONS = ["x", "yy", "zzz"]


def make(fn, **settings):
    return rewards.RewardManager(rewards.Reward(fn=fn, run_in="process", **settings))


def call(manager, prompt="?", completions=COMPLETIONS, **columns):
    return manager([prompt] * len(completions), completions, columns)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wakes(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def is_gone_within(seconds, group):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("on_error", [0.0, None, "raise"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_a_process_that_ends_or_stops_while_idle_is_replaced_and_counted(
    how, on_error, monkeypatch
):
    monkeypatch.setattr(reward_process, "TAKE_SECONDS", 1.0)
    manager = make(process_rewards.own_pid, workers=1, on_error=on_error, time_limit=2.0)
    first = call(manager)
    os.kill(int(first.total[0]), how)
    time.sleep(0.1)
    second = call(manager)
    assert len(set(first.total)) == len(set(second.total)) == 1
    assert first.total[0] != second.total[0]
    assert not is_running(int(first.total[0]))
    assert [one.restarts["own_pid"] for one in (first, second, call(manager))] == [0, 1, 0]
    assert second.costs["reward_failed/own_pid"] == 0.0
    assert second.costs["reward_restarts/own_pid"] == 1.0
    manager.close()


@pytest.mark.parametrize("run_in", ["thread", "process"])
@pytest.mark.parametrize(
    ("child", "expected"), [("sys.exit", 3.0), ("end", 0.0), ("return", 0.0), ("raise", 1.0)]
)
def test_a_process_that_a_function_forks_says_nothing_in_its_place(child, expected, run_in):
    fns = [process_rewards.forks, process_rewards.forks_of_all]
    fns += [process_rewards.forks_later] if run_in == "thread" else []
    for fn in fns:
        manager = rewards.RewardManager(rewards.Reward(fn=fn, run_in=run_in, time_limit=20.0))
        for _ in range(2):  # nor in the place of a later call
            found = call(manager, completions=["x"], child=[child])
            assert found.total.tolist() == [expected] and not any(found.restarts.values())
        manager.close()


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_short_time_limit_is_for_the_function_and_not_for_what_goes_before(how):
    manager = make(process_rewards.own_pid, workers=1, time_limit=0.3)
    first = int(call(manager).total[0])
    os.kill(first, how)  # a busy machine; or one where it takes long to import the function
    wake = threading.Timer(1.0, wakes, (first,))
    wake.start()
    found = call(manager, completions=["x" * 1_000_000, "yy"])
    assert len(set(found.total)) == 1 and (int(found.total[0]) == first) == (how == signal.SIGSTOP)
    assert found.restarts == {"own_pid": int(how == signal.SIGKILL)}
    wake.join()
    manager.close()


def test_every_one_of_several_idle_processes_is_replaced():
    manager = make(process_rewards.own_pid, workers=2, on_error=0.0)
    pids = set()
    for _ in range(20):  # until both have had a turn
        pids |= set(call(manager).total)
    assert len(pids) == 2
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)
    result = call(manager, completions=["x"] * 40)
    assert not set(result.total) & (pids | {0.0})
    assert 1 <= result.restarts["own_pid"] <= 2
    manager.close()


def test_a_function_of_batches_gets_a_new_process_too():
    manager = make(process_rewards.own_pid_of_all, on_error=0.0)
    pid = int(call(manager).total[0])
    os.kill(pid, signal.SIGKILL)
    assert not set(call(manager).total) & {pid, 0}
    manager.close()


ENDINGS = {
    "exit": "its process ended with exit code 7",
    "kill": "its process ended with signal SIGKILL",
    "real-time signal": "its process ended with signal ",
    "sys.exit": "raised SystemExit: 3",
    "fork and end": "its process ended with exit code 7",
    "fork and hang": "took longer than 0.7 s",
    "stop": "took longer than 0.7 s",
    "half, then hang": "took longer than 0.7 s",
    "half, then end": "its process ended with exit code 7",
    "noise": "something that is no answer",
    "hang up": "closed its connection",
    "mute": "raised Mute: (its text cannot be made: RuntimeError)",
    "long text": "raised ValueError: xxx",
    "surrogate": r"raised ValueError: bad \ud83d end",
    "no words": "raised Wordless: (its text cannot be made: SystemExit)",
    "no name": "raised Nameless: text",
}


@pytest.mark.parametrize("deed", ENDINGS)
def test_a_call_that_goes_wrong_costs_its_own_reply_alone(deed, caplog):
    manager = make(process_rewards.does, workers=1, time_limit=0.7, on_error=-1.0)
    start = time.monotonic()
    for _ in range(2):
        assert call(manager, deed).total.tolist() == [1.0, -1.0, 1.0]
    assert time.monotonic() - start < 10.0
    assert ENDINGS[deed] in caplog.text and len(caplog.text) < 5_000
    manager.close()
    manager = make(process_rewards.does, workers=2, time_limit=0.7)
    with pytest.raises(rewards.RewardError) as caught:
        call(manager, deed)
    assert ENDINGS[deed] in str(caught.value) and "sample 1" in str(caught.value)
    assert len(str(caught.value)) < 5_000
    manager.close()


def test_what_a_killed_process_has_started_ends_with_it():
    pool = reward_process.ProcessPool(process_rewards.does, 1)
    pool.run([{"prompt": "?", "completion": "x"}], time_limit=None, most=None)
    group = pool._workers[0]._process.pid
    calls = [{"prompt": "fork and hang", "completion": "yy"}]
    (error,) = pool.run(calls, time_limit=0.5, most=None)
    assert isinstance(error, reward_process.OutOfTimeError)
    assert is_gone_within(5.0, group)  # whoever is left of the process's group


MISTAKES = {
    "lambda": "it returned function, which cannot leave its process",
    "generator": "it returned generator, which cannot leave its process",
    "wild": "what it returned cannot be read outside of its process",
    "leaving": r"what it returned cannot be read outside of its process \(SystemExit: 5",
    "stuck": r"it returned Stuck, which cannot leave its process \(KeyboardInterrupt",
    "huge": "it returned bytes of 134,217,",
}


@pytest.mark.parametrize("deed", MISTAKES)
def test_a_value_that_cannot_come_here_is_a_mistake_whatever_failures_count_as(deed):
    for on_error in (0.0, None, "raise"):
        manager = make(process_rewards.does, workers=1, on_error=on_error)
        with pytest.raises(rewards.RewardError, match=f"does: {MISTAKES[deed]}"):
            call(manager, deed)
        manager.close()


def test_a_batch_from_a_process_may_be_lazy_and_must_have_an_end():
    manager = make(process_rewards.does_to_all, on_error=-1.0)
    with pytest.raises(rewards.RewardError, match="more than 3 rewards for 3 completions"):
        call(manager, "endless")
    manager.close()
    manager = make(process_rewards.lazily, on_error=-1.0)
    assert call(manager).total.tolist() == [1.0, -1.0, 1.0]
    manager.close()


def test_arguments_that_cannot_go_to_a_process_are_named_whatever_failures_count_as():
    manager = make(process_rewards.own_pid_of_all, on_error=0.0)
    with pytest.raises(rewards.RewardError) as caught:
        call(manager, lock=[threading.Lock()] * 3, fine=[1, 2, 3])
    assert "lock (TypeError: cannot pickle" in str(caught.value)
    assert "fine" not in str(caught.value) and "use run_in='thread'" in str(caught.value)
    manager.close()


@pytest.mark.parametrize(
    ("at_import", "expected"),
    [
        ("raise ImportError('no such library')", "cannot start: ImportError: no such library"),
        ("os._exit(9)", "cannot start, tried 3 times: its process ended with exit code 9"),
        ("os.kill(os.getpid(), 9)", "cannot start, tried 3 times: its process ended with signal"),
    ],
)
def test_a_process_that_cannot_start_stops_the_run_whatever_failures_count_as(
    at_import, expected, tmp_path, monkeypatch
):
    (tmp_path / "fragile_rewards.py").write_text(
        "import multiprocessing, os\n"
        f"if multiprocessing.parent_process() is not None:\n    {at_import}\n"
        "def one(completion):\n    return 1.0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import fragile_rewards

    manager = make(fragile_rewards.one, workers=2, on_error=0.0)
    start = time.monotonic()
    with pytest.raises(rewards.RewardError, match=expected):
        call(manager, completions=["x"] * 20)
    assert time.monotonic() - start < 20.0  # not once more for every reply
    manager.close()
    monkeypatch.delitem(__import__("sys").modules, "fragile_rewards")


@pytest.mark.parametrize("function", ["def one(completion): return 1.0", "from apart import one"])
def test_a_script_that_would_start_itself_again_is_told_of_once(function, tmp_path):
    (tmp_path / "apart.py").write_text("def one(completion): return 1.0\n")
    (tmp_path / "script.py").write_text(
        f"from tunix.rl.scoring import rewards\n{function}\nprint('script begins', flush=True)\n"
        "fn = rewards.Reward(fn=one, run_in='process', on_error=0.0)\n"
        "print(rewards.RewardManager(fn)(['?'], ['x'], {}).total, flush=True)\n"
    )
    command = [sys.executable, "script.py"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert found.returncode == 1 and found.stdout.split("\n") == ["script begins"] * 2 + [""]
    assert "under if __name__ == '__main__':" in found.stderr.splitlines()[-1]
    assert found.stderr.count("RewardError: ") == 1


@pytest.mark.parametrize("run_in", ["thread", "process"])
@pytest.mark.parametrize(
    "fn",
    [
        process_rewards.reads_messages,
        process_rewards.reads_message,
        process_rewards.reads_prompt_messages,
    ],
)
def test_a_function_that_expects_messages_is_told_that_there_are_texts(fn, run_in):
    manager = rewards.RewardManager(rewards.Reward(fn=fn, run_in=run_in))
    with pytest.raises(rewards.RewardError, match=r"indices must.*texts here, not lists of mess"):
        call(manager)
    manager.close()
    with pytest.raises(rewards.RewardError) as caught:
        call(rewards.RewardManager(process_rewards.lazily))
    assert "messages" not in str(caught.value)


def test_a_function_that_tells_of_no_module_runs_all_the_same(monkeypatch):
    monkeypatch.setattr(process_rewards.own_pid, "__module__", None)
    manager = make(process_rewards.own_pid)
    assert not set(call(manager).total) & {0.0, os.getpid()}
    manager.close()


def test_a_process_that_takes_no_call_is_replaced_only_so_often(monkeypatch):
    pool = reward_process.ProcessPool(process_rewards.own_pid, 1)
    (worker,) = pool._workers
    start = worker._start

    def start_and_kill():
        start()
        worker._process.kill()
        worker._process.join()

    monkeypatch.setattr(worker, "_start", start_and_kill)
    (found,) = pool.run([{"completion": "x"}], time_limit=None, most=None)
    assert isinstance(found, reward_process.ProcessDiedError)
    assert pool.restarts == 2
    pool.close()


def test_processes_serve_several_callers_at_once():
    manager = make(process_rewards.does, workers=2)
    found = {}

    def score(n):
        found[n] = call(manager, completions=["x"] * 10).total

    threads = [threading.Thread(target=score, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal([found[n] for n in range(4)], np.ones((4, 10)))
    manager.close()
