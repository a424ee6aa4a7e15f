"""What a run is too short for is said before it begins."""

import pytest

from tunix.cli.running import run_plan, training_run
from tunix.cli.schemas import optimizers, schema
from tunix.data import errors, sources

WARM = {"schedule_type": "warmup_linear_decay_schedule", "peak_value": 0.1}


def notes(max_steps, data_steps, *, every=1, has_evaluation=True, **rate):
    plan = run_plan.RunPlan(max_steps=max_steps, data_steps=data_steps)
    loop = schema.LoopOptions(eval_every_n_steps=every)
    options = optimizers.OptimizerOptions(**rate)
    return plan.steps, list(plan.notes(loop, options, has_evaluation=has_evaluation))


@pytest.mark.parametrize(
    ("max_steps", "data_steps", "steps"),
    [
        pytest.param(5, 8, 5, id="max_steps ends it"),
        pytest.param(None, 8, 8, id="the data ends it"),
        pytest.param(5, None, 5, id="nobody knows how long a stream is"),
        pytest.param(8, 8, 8, id="both end at the same step"),
    ],
)
def test_a_run_that_fits_its_data_needs_no_note(max_steps, data_steps, steps):
    assert notes(max_steps, data_steps, every=5) == (steps, [])


def test_the_schedule_ends_with_data_that_ends_before_max_steps():
    steps, (note,) = notes(1000, 12)
    assert steps == 12
    assert note.startswith("the data ends after 12 steps, before max_steps 1000")


@pytest.mark.parametrize(
    ("rate", "note"),
    [
        ({**WARM, "warmup_steps": 12}, "is still warming up when the run ends: 12 steps"),
        ({**WARM, "warmup_ratio": 1.0}, "is still warming up when the run ends: 12 steps"),
        ({**WARM, "warmup_steps": 2, "decay_steps": 13}, "is still decaying when the run ends"),
        ({**WARM, "warmup_steps": 11, "decay_steps": 12}, None),
        ({"learning_rate": 0.1}, None),
    ],
)
def test_a_schedule_longer_than_the_run_is_noted(rate, note):
    _, found = notes(None, 12, **rate)
    assert [note in text for text in found] == ([] if note is None else [True])


def test_a_warm_up_is_measured_against_the_data_not_against_max_steps():
    _, found = notes(1000, 12, **WARM, warmup_steps=50)
    assert "before max_steps 1000" in found[0]
    assert "50 steps of warm-up, 12 steps in all" in found[1]


def test_evaluations_that_do_not_take_place_are_noted():
    _, (note,) = notes(None, 12, every=13)
    assert "eval_every_n_steps 13 is more than the 12 steps" in note
    assert notes(None, 12, every=12)[1] == []
    assert notes(None, 12, every=13, has_evaluation=False)[1] == []


def test_a_run_whose_data_ended_before_the_plan_says_so():
    plan = run_plan.RunPlan(max_steps=100, data_steps=None)
    assert list(plan.ended_early(100)) == []
    assert "the data ended after 7 of 100 steps" in next(plan.ended_early(7))


@pytest.mark.parametrize(
    ("rows", "fraction", "held_out"),
    [(10, 0.99, 1), (10, 0.5, 5), (10, 0.01, 9), (2, 0.999, 1), (1000, 0.9999, 1), (10, 1.0, 0)],
)
def test_a_fraction_holds_out_at_least_one_row_and_trains_on_one(rows, fraction, held_out):
    found = [sources.Row({}, str(i)) for i in range(rows)]
    train, rest = training_run.split_rows(found, fraction, name="data")
    assert (len(rest), [*train, *rest]) == (held_out, found)


def test_one_row_cannot_be_split():
    with pytest.raises(errors.DataError, match=r"train_fraction 0\.9 needs two rows or more"):
        training_run.split_rows([sources.Row({}, "0")], 0.9, name="data")


def test_one_step_is_one_step():
    _, (note,) = notes(None, 1, every=2)
    assert note.endswith("is more than the 1 step")
    _, (note,) = notes(5, 1)
    assert note.startswith("the data ends after 1 step, before")
    assert [run_plan.in_words(steps) for steps in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
