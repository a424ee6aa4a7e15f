import io

import pytest
import rich.console

from tunix.cli.report import report


def measured(accuracy, replies, right, failed=()):
    return {
        "accuracy_function": "exact",
        "greedy_accuracy": accuracy,
        "greedy_reward": accuracy,
        "reward": accuracy / 2,
        "accuracy": accuracy / 2,
        "num_questions": len(replies),
        "num_sampled": 4 * len(replies),
        "completion_length": 7.25,
        "truncated": 0.5,
        "greedy_replies": replies,
        "greedy_right": right,
        "failed": dict(failed),
    }


BEFORE = measured(0.0, ["x" * 500, "no"], [False, False], {"form": 0.25})
AFTER = measured(0.5, ["81", "no"], [True, False])
ROWS = [
    {"step": 1, "train/step_time_sec": 2.0, "train/tokens_per_second": 100.0},
    {"step": 2, "train/step_time_sec": 1.0, "train/tokens_per_second": 400.0},
]


def test_the_summary_weighs_speed_by_time():
    found = report.summarize(BEFORE, AFTER, ROWS, steps=2, seconds=9.876)
    assert found == {
        "accuracy_function": "exact",
        "reward_before": 0.0,
        "reward_after": 0.25,
        "greedy_accuracy_before": 0.0,
        "greedy_accuracy_after": 0.5,
        "steps": 2,
        "seconds": 9.88,
        "training_seconds": 3.0,
        "tokens_per_second": 200.0,
        "num_questions": 2,
        "num_sampled": 8,
    }


def test_without_questions_the_summary_has_no_accuracy():
    found = report.summarize(None, None, [], steps=0, seconds=1.0)
    assert found["greedy_accuracy_after"] is None
    assert found["tokens_per_second"] is None


@pytest.fixture
def console():
    return rich.console.Console(file=io.StringIO(), width=100)


def test_replies_stand_side_by_side_and_long_ones_are_cut(console):
    report.print_replies(console, ["[b]which?", "what?"], BEFORE, AFTER, limit=2)
    text = console.file.getvalue()
    assert "[b]which?" in text  # questions are text, not markup
    assert "81" in text
    assert text.count("x") < 140


def test_the_comparison_names_both_sides(console):
    report.print_comparison(console, BEFORE, AFTER)
    shown = console.file.getvalue().splitlines()
    (line,) = [line for line in shown if "greedy accuracy: exact at least 1 (2 questions)" in line]
    assert "0.000" in line and "0.500" in line
    (line,) = [line for line in shown if "form failed (and on_error counts)" in line]
    assert "25.0%" in line and " 0.0%" in line


def test_the_picture_shows_training_and_what_was_measured_before_during_and_after():
    rows = [
        {"step": 1, "train/reward": 0.1},
        {"step": 1, "eval/reward": 0.2, "eval/greedy/reward": 0.4},
        {"step": 2, "train/reward": 0.3},
    ]
    assert report.curves(rows, BEFORE, AFTER) == {
        "training, sampled": ([1, 2], [0.1, 0.3]),
        "held out, sampled": ([0, 1, 2], [0.0, 0.2, 0.25]),
        "held out, greedy": ([0, 1, 2], [0.0, 0.4, 0.5]),
    }
    assert list(report.curves(rows, None, AFTER)) == ["training, sampled"]
