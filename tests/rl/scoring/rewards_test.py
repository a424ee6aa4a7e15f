import asyncio
import functools
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from tests.rl import process_rewards
from tunix.rl.scoring import rewards
from tunix.utils import config as config_lib

PROMPTS = ["a?", "b?", "c?"]
COMPLETIONS = ["x", "yy", "zzz"]


def length(completions, **columns):
    return [float(len(c)) for c in completions]


def is_answer(completions, answer):
    return [1.0 if c == a else 0.0 for c, a in zip(completions, answer, strict=True)]


def run(fns, weights=None, **columns):
    return rewards.RewardManager(fns, weights)(PROMPTS, COMPLETIONS, columns)


def test_scores_are_weighted_and_added_and_kept_apart():
    result = run([length, is_answer], weights=[0.5, 10.0], answer=["x", "no", "zzz"])
    np.testing.assert_allclose(result.total, [10.5, 1.0, 11.5])
    np.testing.assert_allclose(result.per_function["length"], [1.0, 2.0, 3.0])
    np.testing.assert_allclose(result.per_function["is_answer"], [1.0, 0.0, 1.0])


def test_fractions_and_negative_rewards_survive():
    result = run(lambda completions: [0.75, -1.5, 0.1])
    np.testing.assert_array_equal(result.total, [0.75, -1.5, 0.1])


def test_a_function_gets_the_columns_it_names_or_all():
    seen = {}

    def all_of_them(prompts, completions, **columns):
        seen.update(columns, prompts=prompts)
        return [0.0] * 3

    run([all_of_them, is_answer], answer=[1, 2, 3], other=[4, 5, 6])
    assert seen == {"answer": [1, 2, 3], "other": [4, 5, 6], "prompts": PROMPTS}


@pytest.mark.parametrize(
    "values",
    [
        (1, 2.5, 1),
        np.array([1.0, 2.5, 1.0], np.float32),
        jnp.array([1.0, 2.5, 1.0]),
        jnp.array([1.0, 2.5, 1.0], jnp.bfloat16),
    ],
    ids=["tuple of numbers", "numpy", "jax", "bfloat16"],
)
def test_any_sequence_of_numbers_will_do(values):
    np.testing.assert_allclose(run(lambda completions: values).total, [1.0, 2.5, 1.0])


def test_functions_run_at_the_same_time():
    barrier = threading.Barrier(2, timeout=10)

    def first(completions):
        barrier.wait()
        return [0.0] * 3

    def second(completions):
        barrier.wait()
        return [0.0] * 3

    run([first, second])


class Judge:
    def __call__(self, completions):
        return [1.0] * len(completions)

    def method(self, completions):
        return [2.0] * len(completions)


def test_every_kind_of_callable_has_a_name():
    fns = [
        Judge(),
        Judge().method,
        functools.partial(length),
        lambda completions: [0, 0, 0],
        Judge(),
    ]
    assert rewards.RewardManager(fns).names == ("Judge", "method", "length", "<lambda>", "Judge_2")


class Tensor:
    """What refuses to become an array, as a tensor with a gradient does."""

    def __array__(self, *args, **kwargs):
        raise RuntimeError("use detach()")


async def never_awaited():
    return 1.0


def raises(prompts, completions):
    if "yy" in completions:
        raise KeyError("boom")
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        pytest.param(
            raises, ["raises raised KeyError: 'boom'", "sample 1", "'b?'", "'yy'"], id="exception"
        ),
        pytest.param(lambda completions: [1.0], ["1 rewards for 3 completions"], id="wrong length"),
        pytest.param(
            lambda completions: [0.0, float("nan"), 0.0], ["nan", "sample 1", "'yy'"], id="NaN"
        ),
        pytest.param(
            lambda completions: [0.0, 0.0, float("-inf")], ["-inf", "sample 2", "'zzz'"], id="inf"
        ),
        pytest.param(
            lambda completions: [0.0, True, 0.0], ["True", "sample 1", "float(True)"], id="bool"
        ),
        pytest.param(lambda completions: ["1", 0.0, 0.0], ["'1'", "sample 0"], id="text"),
        pytest.param(lambda completions: 1.0, ["list of numbers, got float"], id="one number"),
        pytest.param(lambda completions: "101", ["list of numbers, got str"], id="a string"),
        pytest.param(
            lambda completions: np.ones((3, 2)), ["sample 0", "finite number"], id="a matrix"
        ),
        pytest.param(lambda completions: {1.0, 2.0, 3.0}, ["numbers, got set"], id="a set"),
        pytest.param(lambda completion: Tensor(), ["Tensor object", "sample 0"], id="a tensor"),
        pytest.param(lambda completion: never_awaited(), ["async def", "sample 0"], id="a promise"),
    ],
)
def test_a_fault_names_the_function_and_the_sample(fn, expected):
    with pytest.raises(rewards.RewardError) as caught:
        run(fn)
    for part in expected:
        assert part in str(caught.value)


def test_what_a_function_does_to_its_lists_is_nothing_to_the_others():
    def greedy(prompts, completions, answer):
        prompts.clear(), completions.clear(), answer.clear()
        return [1.0, 1.0, 1.0]

    columns = {"answer": ["x", "no", "zzz"]}
    manager = rewards.RewardManager([greedy, is_answer])
    for _ in range(2):
        assert manager(PROMPTS, COMPLETIONS, columns).total.tolist() == [2.0, 1.0, 2.0]
    assert columns["answer"] == ["x", "no", "zzz"]


def test_all_faults_are_reported_at_once():
    with pytest.raises(rewards.RewardError) as caught:
        run([raises, lambda completions: [1.0]])
    assert len(caught.value.problems) == 2
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_function_that_fails_only_on_the_batch_says_so():
    def only_batches(completions):
        if len(completions) > 1:
            raise RuntimeError("too many")
        return [0.0]

    with pytest.raises(rewards.RewardError, match="on no sample alone"):
        run(only_batches)


def test_many_faults_are_summed_up():
    manager = rewards.RewardManager(lambda completions: [float("nan")] * len(completions))
    with pytest.raises(rewards.RewardError, match="15 more samples"):
        manager(["p"] * 20, ["c"] * 20, {})


def test_long_texts_are_shortened_in_messages():
    manager = rewards.RewardManager(lambda completions: [float("nan")])
    with pytest.raises(rewards.RewardError) as caught:
        manager(["p" * 10_000], ["c" * 10_000], {})
    assert len(str(caught.value)) < 1_000


def test_a_missing_column_is_reported_before_anything_runs():
    manager = rewards.RewardManager([is_answer, length])
    with pytest.raises(
        rewards.RewardError, match=r"is_answer needs the column 'answer'.*'answers'"
    ):
        manager.check_columns(["answers"])
    manager.check_columns(["answer"])


@pytest.mark.parametrize(
    ("fns", "weights", "message"),
    [
        pytest.param([], None, "reward_fns is empty", id="no function"),
        pytest.param([length], [1.0, 2.0], "2 values for 1 functions", id="one weight too many"),
        pytest.param([length], [float("nan")], "must be finite", id="NaN weight"),
        pytest.param([3], None, "3 is not callable", id="not a function"),
        pytest.param("form", None, "'form' is not callable", id="a name"),
    ],
)
def test_bad_settings_are_one_clear_error(fns, weights, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        rewards.RewardManager(fns, weights)


def test_a_function_that_does_not_apply_is_left_out_of_the_sum():
    def sometimes(completions):
        return [None, 2.0, None]

    result = run([length, sometimes], weights=[1.0, 10.0])
    np.testing.assert_allclose(result.total, [1.0, 22.0, 3.0])
    assert result.scores_of(0) == {"length": 1.0, "sometimes": None}
    with pytest.raises(rewards.RewardError, match=r"applies to 2 of 3 completions.*'sometimes'"):
        run(sometimes)


def test_a_function_of_one_sample_gets_its_own_columns():
    def close(prompt, completion, answer, finish_reasons):
        assert finish_reasons == "stop"
        return float(completion == answer) + len(prompt)

    result = run(close, answer=["x", "no", "zzz"], finish_reasons=["stop"] * 3)
    np.testing.assert_allclose(result.total, [3.0, 2.0, 3.0])


def test_samples_are_scored_at_the_same_time_by_as_many_workers_as_asked_for():
    barrier = threading.Barrier(3, timeout=10)

    def meets(completion):
        barrier.wait()
        return 1.0

    assert run(rewards.Reward(fn=meets, workers=3)).total.sum() == 3.0


class AsyncJudge:
    async def __call__(self, completion):
        await asyncio.sleep(0.05)
        return float(len(completion))


def test_async_functions_wait_together():
    async def batch(completions):
        await asyncio.sleep(0)
        return [1.0] * len(completions)

    start = time.perf_counter()
    manager = rewards.RewardManager([AsyncJudge(), batch])
    result = manager(["p"] * 20, ["cc"] * 20, {})
    assert time.perf_counter() - start < 0.7  # one after the other it is 1 s
    assert result.total.tolist() == [3.0] * 20


async def sleeps_async(completion):
    if completion == "yy":
        await asyncio.sleep(5.0)
    return 1.0


@pytest.mark.parametrize("fn", [process_rewards.sleeps, sleeps_async])
def test_a_call_that_takes_too_long_is_named_or_counted_as_asked(fn):
    with pytest.raises(rewards.RewardError, match=r"took longer than 0.1 s \(at sample 1: "):
        run(rewards.Reward(fn=fn, time_limit=0.1))
    result = run(rewards.Reward(fn=fn, time_limit=0.1, on_error=-1.0))
    assert result.total.tolist() == [1.0, -1.0, 1.0]
    assert result.costs[f"reward_failed/{fn.__name__}"] == pytest.approx(1 / 3)
    assert result.costs[f"reward_seconds/{fn.__name__}"] < 2.0


async def blocks_for_ever(completion):
    while completion == "yy":
        time.sleep(0.01)  # the loop never gets a turn
    return 1.0


async def blocks(completion):
    time.sleep(0.15 if completion == "yy" else 0.0)
    return 1.0


@pytest.mark.parametrize(("fn", "others"), [(blocks_for_ever, 0.0), (blocks, 1.0)])
def test_an_async_function_that_waits_without_await_is_late_all_the_same(fn, others):
    # One call at a time, so that the last one stands behind the one that blocks.
    result = run(rewards.Reward(fn=fn, time_limit=0.1, workers=1, on_error=0.0))
    assert result.total.tolist() == [1.0, 0.0, others]


class Ended(BaseException):
    """What no ``except Exception`` catches."""


def ends(error):
    def one(completion):
        if completion == "yy":
            raise error
        return 1.0

    async def waiting(completion):
        return one(completion)

    return one, waiting


@pytest.mark.parametrize("error", [Ended("over"), asyncio.CancelledError(), SystemExit(3)])
@pytest.mark.parametrize("time_limit", [None, 5.0])
def test_what_would_end_more_than_the_function_ends_its_call_alone(error, time_limit):
    for fn in ends(error):
        result = run(rewards.Reward(fn=fn, time_limit=time_limit, on_error=-1.0))
        assert result.total.tolist() == [1.0, -1.0, 1.0]
        with pytest.raises(rewards.RewardError, match=r"it (raised|called).*at sample 1"):
            run(rewards.Reward(fn=fn, time_limit=time_limit))


def test_a_process_that_hangs_or_crashes_takes_nobody_along():
    manager = rewards.RewardManager(
        [
            rewards.Reward(fn=process_rewards.crashes, run_in="process", workers=1, on_error=None),
            rewards.Reward(
                fn=process_rewards.sleeps, run_in="process", workers=1, time_limit=0.5, on_error=0.0
            ),
        ]
    )
    for _ in range(2):  # the processes are there again
        result = manager(PROMPTS, COMPLETIONS, {})
        assert result.scores_of(0) == {"crashes": 1.0, "sleeps": 1.0}
        assert result.scores_of(1) == {"crashes": None, "sleeps": 0.0}
        assert result.scores_of(2) == {"crashes": None, "sleeps": 1.0}
    manager.close()
    with pytest.raises(rewards.RewardError) as caught:
        run(rewards.Reward(fn=process_rewards.crashes, run_in="process", workers=1))
    assert "exit code 7 (at sample 1" in str(caught.value)
    assert "KeyError: 'boom' (process_rewards.py, line " in str(caught.value)
    assert ") (at sample 2" in str(caught.value)


def test_a_batch_that_fails_is_scored_one_by_one_where_failures_may_count():
    result = run([rewards.Reward(fn=raises, on_error=None), length])
    assert [result.scores_of(i)["raises"] for i in range(3)] == [0.0, None, 0.0]


def test_a_wrong_value_is_an_error_whatever_failures_count_as():
    with pytest.raises(rewards.RewardError, match="nan"):
        run(rewards.Reward(fn=lambda completion: float("nan"), on_error=0.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"fn": lambda prompts, completion: 0}, "choose one kind", id="both kinds"),
        pytest.param({"fn": length, "workers": 2}, "workers is not read", id="idle workers"),
        pytest.param({"fn": length, "time_limit": 0.0}, "must be positive", id="no time"),
        pytest.param({"fn": lambda completions, /: []}, "by its place", id="by place"),
        pytest.param({"fn": length, "on_error": float("nan")}, "finite number", id="NaN"),
        pytest.param(
            {"fn": lambda completion: 0, "run_in": "process"}, "top of a module", id="lambda"
        ),
        pytest.param({"fn": sleeps_async, "run_in": "process"}, "use 'thread'", id="async"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        rewards.Reward(**settings)


def test_a_function_is_called_what_its_settings_call_it():
    def one(prompt, completion):
        return 1.0

    manager = rewards.RewardManager([one, rewards.Reward(fn=one, name="again")])
    assert manager.names == ("one", "again")


def test_an_exception_is_shown_with_the_line_of_the_file_that_made_it():
    with pytest.raises(rewards.RewardError) as caught:
        run(raises)
    line = raises.__code__.co_firstlineno + 2
    assert f"'boom' (rewards_test.py, line {line})" in str(caught.value)
