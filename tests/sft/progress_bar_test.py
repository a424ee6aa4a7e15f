"""Progress on a terminal and in a log file."""

import io

import pytest
import rich.console

from tunix.sft import metrics_logger, progress_bar

TRAIN = metrics_logger.Mode.TRAIN


def bar_on(terminal, *, max_steps=3, initial_steps=0):
    logger = metrics_logger.MetricsLogger()
    console = rich.console.Console(file=io.StringIO(), force_terminal=terminal, width=120)
    bar = progress_bar.ProgressBar("", logger, initial_steps, max_steps, "Tuning", console=console)
    return bar, logger, console.file


def test_a_log_file_gets_a_line_now_and_then(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: clock[0])
    bar, logger, out = bar_on(False, max_steps=5)
    for step in range(1, 6):
        logger.log("", "loss", 2.0 / step, TRAIN, step)
        bar.update_metrics(["loss", "absent"], TRAIN)
        bar.update()
        clock[0] += 4.0
    bar.close()
    assert out.getvalue().splitlines() == [
        "Tuning 1/5  train loss 2.000",
        "Tuning 4/5  train loss 0.500",
        "Tuning 5/5  train loss 0.400",
    ]


def test_without_an_end_only_the_steps_are_counted():
    bar, _, out = bar_on(False, max_steps=None, initial_steps=7)
    bar.update(2)
    bar.close()
    assert out.getvalue() == "Tuning 9\n"


def test_a_terminal_gets_a_bar_with_the_metrics():
    bar, logger, out = bar_on(True)
    logger.log("", "loss", 1.25, TRAIN, 1)
    bar.update_metrics(["loss"], TRAIN, ndigits=2)
    bar.update()
    bar.close()
    text = out.getvalue()
    assert "Tuning" in text
    assert "1/3" in text
    assert "train loss 1.25" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.23456, "1.235"), (0.0, "0.000"), (0.00012345, "0.000123"), (2.5e7, "2.5e+07")],
)
def test_numbers_stay_readable(value, text):
    assert progress_bar._rounded(value, 3) == text
