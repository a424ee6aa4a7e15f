"""Two processes never write to one directory, and one that is dead keeps nobody out."""

import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import orbax.checkpoint as ocp
import pytest

from tunix.sft import checkpoint_manager, run_directory, run_lock

HOLD = """
import pathlib, sys, time
from tunix.sft import run_lock
run_lock.acquire(pathlib.Path(sys.argv[1]))
print("owned", flush=True)
sys.stdin.read()
"""


@pytest.fixture(name="hold")
def _hold():
    """Return a function that has another process own a directory."""
    started = []

    def hold(directory):
        line = [sys.executable, "-c", HOLD, str(directory)]
        process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "owned\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(run_lock, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.1)


def elsewhere(directory, *, age=0.0):
    """Leave the file of an owner on another host, last touched so many seconds ago."""
    owner = run_lock._Owner(host="far", pid=77, boot="b", since="2026-01-02T03:04:05+00:00")
    path = directory / run_lock.FILE
    path.write_text(json.dumps(dataclasses.asdict(owner)))
    os.utime(path, (time.time() - age,) * 2)
    return path


class Touching(threading.Thread):
    """The owner on another host lives."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path, self.is_over = path, threading.Event()

    def run(self):
        while not self.is_over.wait(0.02):
            os.utime(self.path)

    def __enter__(self):
        self.start()

    def __exit__(self, *_):
        self.is_over.set()
        self.join()


def test_a_second_process_is_refused_and_told_who_is_there(tmp_path, hold):
    other = hold(tmp_path)
    with pytest.raises(run_lock.RunLockedError) as caught:
        run_lock.acquire(tmp_path)
    message = str(caught.value)
    assert message.startswith(
        f"{tmp_path} is in use by process {other.pid} on {os.uname().nodename}"
    )
    assert "stop it, or choose another directory" in message


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM], ids=lambda s: s.name)
def test_an_owner_that_was_killed_keeps_nobody_out(tmp_path, hold, stop):
    other = hold(tmp_path)
    other.send_signal(stop)
    other.wait()
    assert (tmp_path / run_lock.FILE).exists()
    with run_lock.owned(tmp_path):
        named = json.loads((tmp_path / run_lock.FILE).read_text())
        assert named["pid"] == os.getpid()


def test_an_owner_that_has_ended_leaves_nothing_behind(tmp_path, hold):
    other = hold(tmp_path)
    other.communicate("")
    with run_lock.owned(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_one_process_may_own_a_directory_twice_until_both_are_over(tmp_path):
    with run_lock.owned(tmp_path):
        with run_lock.owned(tmp_path):
            pass
        assert (tmp_path / run_lock.FILE).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_the_directory_is_the_directory(tmp_path, hold):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    hold(tmp_path / "run")
    with pytest.raises(run_lock.RunLockedError):
        run_lock.acquire(tmp_path / "link")


@pytest.mark.parametrize("has_locks", [True, False], ids=["locks", "no locks"])
def test_an_owner_on_another_host_is_believed_as_long_as_it_touches_its_file(
    tmp_path, monkeypatch, has_locks
):
    """Whether or not the disk passes locks on."""
    if not has_locks:
        monkeypatch.setattr(fcntl, "flock", _unsupported)
    path = elsewhere(tmp_path)
    with Touching(path), pytest.raises(run_lock.RunLockedError, match=r"process 77 on far, since"):
        run_lock.acquire(tmp_path)
    assert json.loads(path.read_text())["host"] == "far"


@pytest.mark.parametrize("has_locks", [True, False], ids=["locks", "no locks"])
def test_one_that_is_silent_is_taken_for_dead(tmp_path, monkeypatch, has_locks):
    if not has_locks:
        monkeypatch.setattr(fcntl, "flock", _unsupported)
    path = elsewhere(tmp_path)
    start = time.monotonic()
    with run_lock.owned(tmp_path):
        assert time.monotonic() - start >= run_lock.SILENCE_SECONDS
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_one_that_has_been_silent_for_hours_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "SILENCE_SECONDS", 1000.0)
    elsewhere(tmp_path, age=2 * 3600.0)
    with run_lock.owned(tmp_path):
        pass


def test_one_that_ends_while_it_is_watched_is_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "SILENCE_SECONDS", 5.0)
    path = elsewhere(tmp_path)
    threading.Timer(0.2, path.unlink).start()
    with run_lock.owned(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("text", ["", "{", "5", '{"host": "x"}', "\0" * 9])
def test_a_file_that_names_nobody_keeps_nobody_out(tmp_path, text):
    (tmp_path / run_lock.FILE).write_text(text)
    with run_lock.owned(tmp_path):
        pass


def test_an_owner_touches_its_file_and_notices_that_another_host_took_it(tmp_path, caplog):
    path = tmp_path / run_lock.FILE
    run_lock.acquire(tmp_path)
    os.utime(path, (1.0, 1.0))
    run_lock.touch_all()
    assert path.stat().st_mtime > 1.0
    elsewhere(tmp_path)
    os.utime(path, (1.0, 1.0))
    for _ in range(2):
        run_lock.touch_all()
    assert path.stat().st_mtime == 1.0
    assert sum("now names process 77 on far" in text for text in caplog.messages) == 1
    run_lock.release(tmp_path)
    assert path.exists()  # it is the other's


def test_run_directories_and_checkpoints_have_one_owner(tmp_path, hold):
    run = run_directory.RunDirectory(tmp_path / "run")
    manager = checkpoint_manager.CheckpointManager(run.checkpoints)
    with run.owned():
        for place in (run.path, run.checkpoints):
            refused = subprocess.run(
                [sys.executable, "-c", HOLD, str(place)],
                capture_output=True,
                text=True,
                check=False,
            )
            assert f"{place} is in use by process {os.getpid()}" in refused.stderr
    manager.close()
    hold(run.checkpoints)
    with pytest.raises(run_lock.RunLockedError):
        checkpoint_manager.CheckpointManager(run.checkpoints)
    reading = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)
    checkpoint_manager.CheckpointManager(run.checkpoints, reading).close()


def test_a_manager_that_nobody_holds_on_to_has_given_up_its_directory(tmp_path):
    checkpoint_manager.CheckpointManager(tmp_path / "a").close()
    manager = checkpoint_manager.CheckpointManager(tmp_path / "b")
    del manager
    left = [pathlib.Path(p).name for p in tmp_path.rglob(run_lock.FILE)]
    assert left == []


def _unsupported(file, operation):
    raise OSError(errno.ENOTSUP, "not supported")
