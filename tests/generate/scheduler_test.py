"""The host's bookkeeping: what is prefilled, placed, and put together again."""

import numpy as np
import pytest

from tunix.generate import decode_loop, requests, sampling_params, scheduler

ROWS = {16: 2, 32: 1}


def plan_of(*lengths, num_samples=1, slots=4, **settings):
    params = sampling_params.SamplingParams(**{"max_new_tokens": 5, **settings})
    prompts = [
        requests.Prompt(token_ids=np.zeros(length, np.int32), params=params) for length in lengths
    ]
    return scheduler.Scheduler(prompts, num_samples=num_samples, slots=slots, buckets=list(ROWS))


def prefill_and_place(plan):
    """Do what the engine does; return the batches and the placements as (slot, request)."""
    batches, placed = [], []
    while True:
        if batch := plan.next_prefill(ROWS):
            batches.append(batch)
            plan.add_prefilled(object(), batch[1])
        if not (started := plan.start()):
            return batches, placed
        placed.append([(slot, sample.request) for slot, sample in started])


def report(plan, counts, active):
    """Report a block in which slot ``s`` drew tokens ``10 s, 10 s + 1, ...``."""
    slots = len(counts)
    tokens = np.arange(8)[None] + 10 * np.arange(slots)[:, None]
    block = decode_loop.Block(
        tokens=tokens.astype(np.int32), logps=-tokens / 10.0, sampled_logps=-tokens / 20.0
    )
    plan.record(block, np.asarray(counts), np.asarray(active, bool))


def test_prompts_are_batched_by_the_smallest_bucket_that_holds_them():
    batches, _ = prefill_and_place(plan_of(3, 17, 16, 32))
    assert batches == [(16, [0, 2]), (32, [1]), (32, [3])]


def test_a_group_is_prefilled_once_and_its_samples_wait_for_slots():
    plan = plan_of(3, 4, num_samples=3, slots=4)
    batches, placed = prefill_and_place(plan)
    assert batches == [(16, [0, 1])]
    assert placed == [[(0, 0), (1, 1), (2, 2), (3, 3)]]
    report(plan, [1, 5, 2, 5], [True, False, True, False])
    batches, placed = prefill_and_place(plan)
    assert batches == []
    assert placed == [[(1, 4), (3, 5)]]


def test_samples_of_different_prefills_are_placed_separately():
    _, placed = prefill_and_place(plan_of(3, 20))
    assert placed == [[(0, 0)], [(1, 1)]]


def test_only_what_shares_the_first_prefill_is_placed_at_once():
    plan = plan_of(3, 3, 20)
    assert plan.next_prefill(ROWS) == (16, [0, 1])
    plan.add_prefilled("first", [0, 1])
    plan.add_prefilled("second", [2])
    assert [(slot, sample.request) for slot, sample in plan.start()] == [(0, 0), (1, 1)]
    assert [(slot, sample.request) for slot, sample in plan.start()] == [(2, 2)]


def test_a_call_is_done_when_nothing_waits_and_nothing_runs():
    plan = plan_of(3)
    assert not plan.is_done  # waits
    prefill_and_place(plan)
    assert not plan.is_done  # runs
    report(plan, [5, 0, 0, 0], [False] * 4)
    assert plan.is_done


def test_no_prompt_is_prefilled_before_there_is_a_slot():
    plan = plan_of(3, 20, 21, slots=2)
    batches, _ = prefill_and_place(plan)
    assert batches == [(16, [0]), (32, [1])]


def test_the_loop_is_interrupted_only_while_something_waits():
    waiting = plan_of(*[3] * 60, slots=56)
    prefill_and_place(waiting)
    assert waiting.return_at_idle == 7  # one slot in eight
    few = plan_of(*[3] * 9, slots=4)
    prefill_and_place(few)
    assert few.return_at_idle == 1
    everything_runs = plan_of(3, 3, slots=32)
    prefill_and_place(everything_runs)
    assert everything_runs.return_at_idle == 32


def test_blocks_are_joined_per_sample_and_results_come_in_request_order():
    plan = plan_of(3, 3, 3, slots=2, stop_token_ids=(11,))
    prefill_and_place(plan)
    report(plan, [3, 2], [True, False])  # slot 1 drew 10, 11: it stopped itself
    prefill_and_place(plan)  # request 2 takes slot 1
    report(plan, [5, 1], [False, True])
    report(plan, [5, 5], [False, False])
    assert plan.is_done
    first, second, third = plan.completions
    assert first.token_ids.tolist() == [0, 1, 2, 0, 1]
    np.testing.assert_allclose(first.logps, [0, -0.1, -0.2, 0, -0.1])
    np.testing.assert_allclose(first.sampled_logps, [0, -0.05, -0.1, 0, -0.05])
    assert first.finish_reason == "length"
    assert second.token_ids.tolist() == [10, 11]
    assert second.finish_reason == "stop"
    assert third.token_ids.tolist() == [10, 10, 11, 12, 13]
    assert third.finish_reason == "length"


def test_a_reply_stopped_itself_if_its_last_token_is_a_stop_token():
    plan = plan_of(3, 3, slots=2, stop_token_ids=(2, 11))
    prefill_and_place(plan)
    report(plan, [3, 3], [False, False])  # 0, 1, 2 and 10, 11, 12
    assert [done.finish_reason for done in plan.completions] == ["stop", "length"]


def test_a_slot_carries_the_settings_of_its_sample():
    plan = plan_of(3, top_k=7, min_p=0.1, stop_token_ids=(4, 9), temperature=0.5)
    idle = plan.settings
    assert idle.temperature[0] == 0.0  # greedy, so that it never asks for a truncation
    prefill_and_place(plan)
    settings = plan.settings
    assert settings.top_k[0] == 7
    assert settings.top_p[0] == 1.0
    assert settings.min_p[0] == np.float32(0.1)
    assert settings.temperature[0] == 0.5
    assert settings.repetition_penalty[0] == 1.0
    assert settings.max_new_tokens[0] == 5
    assert settings.stop_ids[0, :3].tolist() == [4, 9, decode_loop.NO_TOKEN]
    assert settings.temperature[1] == 0.0


def test_a_sample_without_settings_gets_the_neutral_ones():
    plan = plan_of(3)
    prefill_and_place(plan)
    found = plan.settings
    assert (found.top_k[0], found.top_p[0], found.min_p[0]) == (0, 1.0, 0.0)
    assert (found.temperature[0], found.repetition_penalty[0]) == (1.0, 1.0)
    assert (found.stop_ids[0] == decode_loop.NO_TOKEN).all()


@pytest.mark.parametrize("num_samples", [1, 4])
def test_no_prompts_are_done_at_once(num_samples):
    plan = plan_of(num_samples=num_samples)
    assert plan.is_done
    assert plan.completions == []
