"""Metrics: nothing waits for them, nothing is lost, nothing is swallowed."""

import errno
import json
import sys
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX import event_file_writer, record_writer

from tunix.sft import metrics_logger
from tunix.sft.metrics import metrics_backends, metrics_writer
from tunix.utils import config as config_lib

TRAIN, EVAL = metrics_logger.Mode.TRAIN, metrics_logger.Mode.EVAL


class Memory:
    """A backend as a user would write it: two methods."""

    def __init__(self):
        self.rows, self.closed = [], False

    def log_scalar(self, event, value, step):
        self.rows.append((event, value, step))

    def close(self):
        self.closed = True


class Broken(Memory):
    def log_scalar(self, event, value, step):
        raise ConnectionError("server is gone")


def logger_to(*backends, **options):
    factories = [lambda b=b: b for b in backends]
    return metrics_logger.MetricsLogger(
        metrics_logger.MetricsLoggerOptions(log_dir="", backend_factories=factories, **options)
    )


def test_every_scalar_reaches_every_backend_in_order():
    one, other = Memory(), Memory()
    logger = logger_to(one, other)
    logger.log("actor", "loss", 1.5, TRAIN, 1)
    logger.log("", "loss", jnp.float32(2.5), "eval", 2)
    logger.close()
    assert one.rows == other.rows == [("actor/train/loss", 1.5, 1), ("eval/loss", 2.5, 2)]
    assert one.closed


def test_logging_does_not_wait_for_a_slow_backend():
    release = threading.Event()

    class Slow(Memory):
        def log_scalar(self, event, value, step):
            assert release.wait(30)
            super().log_scalar(event, value, step)

    slow = Slow()
    logger = logger_to(slow)
    for step in range(5):
        logger.log("", "loss", 0.0, TRAIN, step)
    assert slow.rows == []
    release.set()
    logger.flush()
    assert len(slow.rows) == 5
    logger.close()


def test_a_failing_backend_is_reported_once_and_does_not_stop_the_others():
    good = Memory()
    logger = logger_to(Broken(), good)
    logger.log("", "loss", 1.0, TRAIN, 1)
    logger.log("", "loss", 2.0, TRAIN, 2)
    with pytest.raises(metrics_writer.MetricsBackendError, match="ConnectionError: server is gone"):
        logger.flush()
    assert len(good.rows) == 2
    logger.flush()
    logger.log("", "loss", 3.0, TRAIN, 3)
    with pytest.raises(metrics_writer.MetricsBackendError):
        logger.close()
    assert good.closed


class Full(Memory):
    def log_scalar(self, event, value, step):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_a_matter_of_the_machine_not_of_the_program():
    logger = logger_to(Full())
    logger.log("", "loss", 1.0, TRAIN, 1)
    with pytest.raises(OSError, match="cannot write metrics: No space left on device; free some"):
        logger.close()


def test_recent_values_can_be_read_back():
    logger = metrics_logger.MetricsLogger()
    assert not logger.metric_exists("", "loss", TRAIN)
    for step in range(3):
        logger.log("", "loss", jnp.float32(step), TRAIN, step)
    assert logger.metric_exists("", "loss", TRAIN)
    assert not logger.metric_exists("", "loss", EVAL)
    assert logger.get_metric("", "loss", TRAIN) == 2.0
    np.testing.assert_array_equal(logger.get_metric_history("", "loss", "train"), [0, 1, 2])
    logger.close()


def test_memory_is_bounded():
    logger = metrics_logger.MetricsLogger()
    for step in range(metrics_logger.HISTORY + 10):
        logger.log("", "loss", step, TRAIN, step)
    history = logger.get_metric_history("", "loss", TRAIN)
    assert len(history) == metrics_logger.HISTORY
    assert history[0] == 10


def test_a_misspelt_metric_is_an_error_with_a_suggestion():
    logger = metrics_logger.MetricsLogger()
    logger.log("", "loss", 1.0, TRAIN, 1)
    with pytest.raises(KeyError, match=r"did you mean 'train/loss'"):
        logger.get_metric("", "los", TRAIN)


def test_an_array_is_not_a_metric():
    with pytest.raises(ValueError, match=r"'train/loss' must be a scalar, found shape \(3,\)"):
        metrics_logger.MetricsLogger().log("", "loss", np.ones(3), TRAIN, 1)


def files(tmp_path, **options):
    return metrics_logger.MetricsLogger(
        metrics_logger.MetricsLoggerOptions(log_dir=str(tmp_path), **options)
    )


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines_hold_one_line_per_step(tmp_path):
    logger = files(tmp_path)
    for step in (1, 2):
        logger.log("", "loss", step / 4, TRAIN, step)
        logger.log("", "grad_norm", 3.0, TRAIN, step)
    logger.log("", "loss", 9.0, EVAL, 2)
    logger.close()
    assert read(tmp_path / "metrics.jsonl") == [
        {"step": 1, "train/loss": 0.25, "train/grad_norm": 3.0},
        {"step": 2, "train/loss": 0.5, "train/grad_norm": 3.0, "eval/loss": 9.0},
    ]


def test_the_same_metric_twice_in_a_step_is_two_lines(tmp_path):
    logger = files(tmp_path)
    logger.log("", "loss", 1.0, TRAIN, 1)
    logger.log("", "loss", 2.0, TRAIN, 1)
    logger.close()
    assert [row["train/loss"] for row in read(tmp_path / "metrics.jsonl")] == [1.0, 2.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_json_has_no_number_for_is_text_that_float_reads(tmp_path, value):
    logger = files(tmp_path)
    logger.log("", "loss", value, TRAIN, 1)
    logger.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    row = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    np.testing.assert_equal(float(row["train/loss"]), value)


def test_everything_is_handed_over_every_few_steps(tmp_path):
    logger = files(tmp_path, flush_every_n_steps=2)
    for step in range(1, 6):
        logger.log("", "loss", 0.0, TRAIN, step)
    logger._writer._run(lambda: None)  # waits for the thread without flushing
    assert [row["step"] for row in read(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    logger.close()


def test_a_run_that_resumes_cuts_its_log_and_keeps_what_it_cut(tmp_path):
    logger = files(tmp_path)
    for step in range(1, 6):
        logger.log("", "loss", float(step), TRAIN, step)
    logger.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "tra')  # killed in the middle of a line
    logger = files(tmp_path)
    logger.truncate_after(3)
    logger.log("", "loss", 40.0, TRAIN, 4)
    logger.close()
    assert [row["train/loss"] for row in read(tmp_path / "metrics.jsonl")] == [1, 2, 3, 40]
    assert [row["step"] for row in read(tmp_path / "metrics.jsonl.dropped")] == [4, 5]


def test_the_run_name_is_a_subdirectory(tmp_path):
    logger = files(tmp_path, run_name="first")
    logger.log("", "loss", 1.0, TRAIN, 1)
    logger.close()
    assert (tmp_path / "first" / "metrics.jsonl").exists()


def test_tensorboard_gets_the_same_values_and_the_title(tmp_path):
    from tensorboardX.proto import event_pb2

    logger = files(tmp_path, project_name="proj", run_name="r1")
    logger.log("", "loss", 1.25, TRAIN, 7)
    logger.close()
    (path,) = (tmp_path / "r1" / "tensorboard").iterdir()
    events = [event_pb2.Event.FromString(record) for record in records(path.read_bytes())]
    values = {v.tag: (v.simple_value, e.step) for e in events for v in e.summary.value}
    assert values["train/loss"] == (1.25, 7)
    assert b"proj/r1" in path.read_bytes()


def test_tensorboard_is_told_what_a_resumed_run_logs_again(tmp_path):
    from tensorboardX.proto import event_pb2

    backend = metrics_backends.TensorboardBackend(tmp_path)
    backend.truncate_after(4)
    backend.log_scalar("train/loss", 2.0, 5)
    backend.close()
    (path,) = tmp_path.iterdir()
    events = [event_pb2.Event.FromString(record) for record in records(path.read_bytes())]
    assert events[0].file_version == "brain.Event:2"
    (started,) = [e for e in events if e.session_log.status == event_pb2.SessionLog.START]
    assert started.step == 5
    assert events[-1].summary.value[0].simple_value == 2.0


def test_tensorboard_on_a_full_disk_fails_and_does_not_hang(tmp_path, monkeypatch):
    full = record_writer.RecordWriter("/dev/full")
    monkeypatch.setattr(event_file_writer, "RecordWriter", lambda path: full)
    backend = metrics_backends.TensorboardBackend(tmp_path)
    backend.log_scalar("train/loss", 2.0, 5)
    with pytest.raises(OSError, match="No space left on device"):
        backend.flush()
    with pytest.raises(OSError, match="No space left on device"):
        backend.close()


def records(data):
    """The records of a TFRecord file: length, checksum, payload, checksum."""
    while data:
        length = int.from_bytes(data[:8], "little")
        yield data[12 : 12 + length]
        data = data[16 + length :]


def test_the_console_gets_a_line_per_step(capsys):
    logger = logger_to(metrics_logger.ConsoleBackend())
    logger.log("", "loss", 1.23456, TRAIN, 1)
    logger.log("", "kl", 0.5, TRAIN, 1)
    logger.log("", "loss", 1.0, TRAIN, 2)
    logger.close()
    assert capsys.readouterr().out.splitlines() == [
        "step 1  train/loss 1.235  train/kl 0.5",
        "step 2  train/loss 1",
    ]


def test_wrong_options_are_refused():
    with pytest.raises(config_lib.ConfigError, match="flush_every_n_steps must be at least 1"):
        metrics_logger.MetricsLoggerOptions(log_dir="x", flush_every_n_steps=0)


class FakeWandb:
    """Remembers what it is asked for, as the module and as its run."""

    def __init__(self):
        self.runs, self.logged, self.finished = [], [], 0

    def init(self, **settings):
        self.runs.append(settings)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1


@pytest.fixture(name="wandb")
def _wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(metrics_backends.importlib.util, "find_spec", lambda name: fake)
    return fake


def test_wandb_gets_the_scalars_of_a_step_together(tmp_path, wandb):
    options = metrics_logger.MetricsLoggerOptions(
        log_dir=str(tmp_path), project_name="mine", run_name="first", wandb="offline"
    )
    logger = metrics_logger.MetricsLogger(options)
    for step in (1, 2):
        logger.log("", "loss", 1.0 / step, "train", step)
        logger.log("", "nll", 0.5, "train", step)
    logger.close()
    assert wandb.logged == [
        (1, {"train/loss": 1.0, "train/nll": 0.5}),
        (2, {"train/loss": 0.5, "train/nll": 0.5}),
    ]
    assert wandb.finished == 1
    (run,) = wandb.runs
    assert (run["project"], run["name"], run["mode"]) == ("mine", "first", "offline")
    assert run["dir"] == str(tmp_path / "first")


def test_a_directory_is_the_same_wandb_run_when_it_is_resumed(tmp_path, wandb):
    for folder in ("one", "one", "two"):
        backend = metrics_backends.WandbBackend(tmp_path / folder)
        backend.log_scalar("loss", 1.0, 1)
        backend.close()
    first, again, other = (run["id"] for run in wandb.runs)
    assert first == again != other
    assert all(run["resume"] == "allow" for run in wandb.runs)


def test_wandb_that_is_not_installed_is_an_error_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_backends.importlib.util, "find_spec", lambda name: None)
    options = metrics_logger.MetricsLoggerOptions(log_dir=str(tmp_path), wandb="online")
    with pytest.raises(ImportError, match=r"pip install 'tunix\[wandb\]'"):
        metrics_logger.MetricsLogger(options)


def test_wandb_beside_own_backends_would_not_be_read(tmp_path):
    with pytest.raises(ValueError, match="not read where backend_factories are given"):
        metrics_logger.MetricsLoggerOptions(
            log_dir=str(tmp_path), wandb="online", backend_factories=[Memory]
        )
