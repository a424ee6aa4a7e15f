"""Progress on a terminal and in a log file."""

import io

import pytest
import rich.console

from tunix.sft import metrics_logger, progress_bar

TRAIN, EVAL = metrics_logger.Mode.TRAIN, metrics_logger.Mode.EVAL


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
        "Tuning 4/5  about 4 s left  train loss 0.500",
        "Tuning 5/5  train loss 0.400",
    ]


def test_how_long_it_takes_is_said_from_the_third_step_on_and_leaves_out_the_first(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: clock[0])
    bar, _, out = bar_on(False, max_steps=100, initial_steps=40)
    for seconds in (300.0, 30.0, 60.0, 45.0):  # the first step compiles
        clock[0] += seconds
        bar.update()
    # 57 steps left at 45 s each, then 56.
    assert out.getvalue().splitlines() == [
        "Tuning 41/100",
        "Tuning 42/100",
        "Tuning 43/100  about 43 min left",
        "Tuning 44/100  about 42 min left",
    ]


def test_steps_that_come_several_at_a_time_are_counted_one_by_one(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: clock[0])
    bar, _, out = bar_on(False, max_steps=None)
    for total in (None, None, 20):
        clock[0] += 40.0
        if total:
            bar.expect(total)
        bar.update(4)
    # 8 steps in 80 s, 8 left.
    assert out.getvalue().splitlines()[-1] == "Tuning 12/20  about 1 min left"


def test_an_evaluation_is_printed_once_with_its_step(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: clock[0])
    bar, logger, out = bar_on(False, max_steps=None)
    for step in range(1, 7):
        logger.log("", "loss", 1.0 / step, TRAIN, step)
        bar.update_metrics(["loss"], TRAIN)
        bar.update()
        if step in (2, 3):
            logger.log("", "loss", float(step), EVAL, step)
            bar.update_metrics(["loss", "absent"], EVAL)
        clock[0] += 5.0
    logger.log("", "loss", 6.0, EVAL, 6)
    bar.update_metrics(["loss"], EVAL)
    bar.close()
    bar.close()
    assert out.getvalue().splitlines() == [
        "Tuning 1  train loss 1.000",
        "Tuning 3  train loss 0.333  eval at step 2: loss 2.000",
        "Tuning 5  train loss 0.200  eval at step 3: loss 3.000",
        "Tuning 6  train loss 0.167  eval at step 6: loss 6.000",
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


def test_a_terminal_is_told_how_long_it_takes_and_when_it_was_evaluated(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: clock[0])
    bar, logger, out = bar_on(True, max_steps=10)
    for step in range(1, 5):
        clock[0] += 100.0
        bar.update()
        if step == 2:
            logger.log("", "loss", 1.25, EVAL, step)
            bar.update_metrics(["loss"], EVAL)
    bar.close()
    text = out.getvalue()
    assert "about 10 min left" in text  # 6 steps of 100 s
    assert "eval at step 2: loss 1.250" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.1, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3569, "59 min"),
        (3571, "1 h"),
        (3661, "1 h 1 min"),
        (86_399, "1 d"),
        (90_000, "1 d 1 h"),
    ],
)
def test_times_are_said_in_two_units_at_most(seconds, text):
    assert progress_bar.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.23456, "1.235"),
        (0.0, "0.000"),
        (-0.0, "0.000"),
        (0.00012345, "0.000123"),
        (-2e-6, "-2e-06"),
        (2.5e7, "2.5e+07"),
        (-4e-9, "0.000"),  # what rounding leaves of zero
        (7.45e-9, "0.000"),
        (1.66e-14, "0.000"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
    ],
)
def test_numbers_stay_readable(value, text):
    assert progress_bar._rounded(value, 3) == text
