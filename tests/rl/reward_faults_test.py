"""Reward functions that misbehave in the trainer's own process: bounded, told of, kept apart."""

import asyncio
import copy
import functools
import itertools
import threading
import time
import tracemalloc

import numpy as np
import pytest

from tests.rl import process_rewards
from tunix.rl.scoring import rewards
from tunix.sft.loop import reply_scores
from tunix.utils import config as config_lib

PROMPTS = ["a?", "b?", "c?"]
COMPLETIONS = ["x", "yy", "zzz"]


def run(fns, **columns):
    return rewards.RewardManager(fns)(PROMPTS, COMPLETIONS, columns)


def endless(completions):
    while True:
        yield 1.0


class Endless:
    def __call__(self, completions):
        return self

    def __iter__(self):
        return itertools.repeat(1.0)


async def endless_async(completions):
    return itertools.count()


@pytest.mark.parametrize("on_error", ["raise", 0.0])
@pytest.mark.parametrize(
    "fn", [endless, Endless(), endless_async, lambda completions: [1.0] * 1_000_000]
)
def test_more_values_than_completions_are_never_all_taken(fn, on_error):
    tracemalloc.start()
    with pytest.raises(rewards.RewardError, match="returned more than 3 rewards for 3 completions"):
        run(rewards.Reward(fn=fn, on_error=on_error))
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def breaks_late(completions):
    for completion in completions:
        if completion == "zzz":
            raise KeyError("late")
        yield 1.0


def sleeps_late(completions):
    yield 1.0
    time.sleep(5.0)
    yield from (1.0, 1.0)


def test_what_a_generator_does_while_it_is_read_is_within_its_guard():
    assert run(rewards.Reward(fn=breaks_late, on_error=-1.0)).total.tolist() == [1.0, 1.0, -1.0]
    with pytest.raises(rewards.RewardError, match=r"raised KeyError: 'late' \(reward_faults_test"):
        run(breaks_late)
    start = time.monotonic()
    found = run(rewards.Reward(fn=sleeps_late, time_limit=0.2, on_error=-1.0))
    assert found.total.tolist() == [-1.0] * 3 and time.monotonic() - start < 3.0


def bare_array(completions):
    return np.asarray(1.0)


async def promised(completions):
    yield 1.0


@pytest.mark.parametrize("fn", [bare_array, promised, lambda completions: iter])
def test_a_value_without_entries_is_a_mistake_whatever_failures_count_as(fn):
    with pytest.raises(rewards.RewardError, match="must return a list of numbers, got"):
        run(rewards.Reward(fn=fn, on_error=0.0))


class Mute:
    def __repr__(self):
        raise RuntimeError("no words")


class Vague(Exception):
    __str__ = Mute.__repr__


class Ended(BaseException):
    __repr__ = Mute.__repr__


def raises(error):
    def fn(completion):
        if completion == "yy":
            raise error
        return 1.0

    return fn


def test_an_exception_or_a_value_without_words_is_told_of_all_the_same(caplog):
    wordless = process_rewards.Wordless()
    for error in (Vague(), Ended(), SystemExit(Mute()), process_rewards.Mute(), wordless):
        result = run(rewards.Reward(fn=raises(error), on_error=-1.0))
        assert result.total.tolist() == [1.0, -1.0, 1.0]
        with pytest.raises(rewards.RewardError, match=r"text cannot be made.*at sample 1"):
            run(raises(error))
    assert "fn failed for 1 of 3 completions" in caplog.text
    with pytest.raises(rewards.RewardError, match=r"returned \(its text cannot be made.*sample 0"):
        run(lambda completion: Mute())


def test_an_exception_whose_class_has_no_name_to_be_told_is_told_of():
    with pytest.raises(rewards.RewardError, match="fn raised Nameless: text"):
        run(raises(process_rewards.Nameless("text")))


@pytest.mark.parametrize("limit", [1e9, 1e10, 1e18, 1e30])
def test_a_limit_of_ages_is_none(limit):
    async def later(completion):
        return 1.0

    fns = [rewards.Reward(fn=fn, time_limit=limit) for fn in (lambda completion: 1.0, later)]
    assert run(fns).total.tolist() == [2.0] * 3


def test_a_function_does_not_take_the_name_of_the_penalty_for_length():
    def overlong(completion):
        return 1.0

    named = rewards.Reward(fn=lambda completion: 1.0, name="overlong")
    for fn in (overlong, [overlong, len], named):
        with pytest.raises(config_lib.ConfigError, match=r"'overlong' is what metrics .* another"):
            run(fn)
    assert run(rewards.Reward(fn=overlong, name="short")).per_function.keys() == {"short"}


async def cancels_all(completion):
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(60.0)


async def stops_the_loop(completion):
    asyncio.get_running_loop().stop()
    await asyncio.sleep(60.0)


@pytest.mark.parametrize("limit", [None, 30.0])
@pytest.mark.parametrize("fn", [cancels_all, stops_the_loop])
def test_a_call_that_ends_the_loop_of_all_is_a_failure_and_no_waiting(fn, limit, capfd):
    start = time.monotonic()
    found = run(rewards.Reward(fn=fn, time_limit=limit, on_error=-1.0))
    assert found.total.tolist() == [-1.0] * 3
    with pytest.raises(rewards.RewardError, match=f"{fn.__name__} raised RuntimeError: "):
        run(rewards.Reward(fn=fn, time_limit=limit))
    assert time.monotonic() - start < 10.0
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.filterwarnings("error")
def test_a_coroutine_that_a_decorator_hides_is_told_of_and_leaves_no_warning():
    async def later(completions):
        return [1.0] * 3

    with pytest.raises(rewards.RewardError, match="got coroutine; it was not awaited"):
        run(functools.wraps(later)(lambda completions: later(completions)))


def spoils(completion, nested, **columns):
    nested["right"].append("more")
    nested["deep"]["er"].clear()
    columns["array"][:] = 0
    return 1.0


def spoils_all(completions, nested, **columns):
    return [spoils(None, nested=one, array=columns["array"][i]) for i, one in enumerate(nested)]


async def spoils_later(completion, nested, **columns):
    return spoils(completion, nested, **columns)


def sees(seen):
    def fn(completion, nested, array):
        seen.append((copy.deepcopy(nested), array.tolist()))
        return 0.0

    return fn


@pytest.mark.parametrize("fn", [spoils, spoils_all, spoils_later])
def test_what_a_function_does_to_nested_columns_is_nothing_to_anyone_else(fn):
    shared = {"right": ["x"], "deep": {"er": [1, 2]}}  # of one prompt: the same for its replies
    columns = {"nested": [shared] * 3, "array": [np.arange(2)] * 3}
    seen = []
    manager = rewards.RewardManager([fn, sees(seen), fn])
    for _ in range(2):
        manager(PROMPTS, COMPLETIONS, columns)
    assert shared == {"right": ["x"], "deep": {"er": [1, 2]}}
    assert seen == [(shared, [0, 1])] * 6
    assert columns["array"][0].tolist() == [0, 1]


def test_a_score_of_sft_has_values_of_its_own_too():
    def spoils_lists(completions, tags):
        tags[0].clear(), completions.clear()
        return [0.0] * 3

    def counts(completions, tags):
        return [float(len(one)) for one in tags]

    tags = [["a", "b"]] * 3
    found = reply_scores.Scores([spoils_lists, counts])(PROMPTS, COMPLETIONS, {"tags": tags})
    assert found["counts"].tolist() == [2.0] * 3 and tags[0] == ["a", "b"]


def test_what_cannot_be_copied_is_shared():
    lock = threading.Lock()
    assert run(lambda completion, lock: float(lock.locked()), lock=[lock] * 3).total.sum() == 0.0


def test_failures_are_told_of_once_and_again_when_all_begin_to_fail(caplog):
    broken = {"yy"}

    def fragile(completion):
        if completion in broken:
            raise OSError("service is down")
        return 1.0

    manager = rewards.RewardManager([rewards.Reward(fn=fragile, on_error=0.0)])

    def warnings():
        caplog.clear()
        manager(PROMPTS, COMPLETIONS, {})
        return [record.getMessage() for record in caplog.records]

    (first,) = warnings()
    assert first.startswith("fragile failed for 1 of 3 completions, which get on_error (0.0)")
    assert "OSError: service is down (reward_faults_test.py, line " in first and "'yy'" in first
    assert warnings() == []
    broken |= set(COMPLETIONS)
    (whole,) = warnings()
    assert whole.startswith("fragile failed for 3 of 3 completions")
    assert warnings() == []
    broken.clear()
    assert warnings() == []
    broken |= set(COMPLETIONS)
    assert len(warnings()) == 1
