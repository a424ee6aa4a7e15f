"""The host's bookkeeping: what is prefilled, placed, and put together again."""

import numpy as np
import pytest

from tunix.generate import completion, decode_loop, requests, sampling_params, scheduler

TILE = 4
VOCAB = 100


class Plan:
    """A scheduler and what was put into it; a prompt is a length and a first token."""

    def __init__(self, *lengths, slots=4, **settings):
        self.scheduler = scheduler.Scheduler(slots=slots, vocab_size=VOCAB, key_words=2, tile=TILE)
        self.deltas, self.settings, self.ids = {}, settings, 0
        self.add(*lengths)

    def add(self, *lengths, samples=1, banned=None, **settings):
        """Add requests; equal lengths are equal prompts, unless they are (length, first token)."""
        params = sampling_params.SamplingParams(
            **{"max_new_tokens": 5, **self.settings, **settings}
        )
        for given in lengths:
            length, first = given if isinstance(given, tuple) else (given, 0)
            ids = np.zeros(length, np.int32)
            ids[0] = first
            for _ in range(samples):
                self.scheduler.add(
                    scheduler.Ticket(
                        id=self.ids,
                        prompt=requests.Prompt(token_ids=ids.copy(), params=params),
                        draws=scheduler.Draws(
                            key=np.array([3, self.ids], np.uint32), banned=banned
                        ),
                        index=10 + self.ids,
                        on_delta=None,
                    )
                )
                self.deltas[self.ids] = []
                self.ids += 1

    def refill(self, most=100):
        """Do what the engine does; return (slot, start) of tiles and (source, slot) of starts."""
        tiles, starts = self.scheduler.refill(most)
        return [tile[:2] for tile in tiles], [start[:2] for start in starts]

    def report(self, counts, active, aborted_meanwhile=()):
        """Report a block in which slot ``s`` drew tokens ``10 s, 10 s + 1, ...``."""
        assert self.scheduler.turn(8) is not None
        for request_id in aborted_meanwhile:
            self.scheduler.abort(request_id)
        tokens = np.arange(8)[None] + 10 * np.arange(len(counts))[:, None]
        block = decode_loop.Block(
            tokens=tokens.astype(np.int32), logps=-tokens / 10.0, sampled_logps=-tokens / 20.0
        )
        found = self.scheduler.record(block, np.asarray(counts), np.asarray(active, bool), 7)
        for ticket, delta in found:
            assert delta.request_id == ticket.id
            self.deltas[ticket.id].append(delta)

    def completion(self, request_id):
        return completion.join(self.deltas[request_id])


def test_prompts_are_cut_into_tiles_and_start_when_complete():
    plan = Plan(3, 9)
    assert plan.refill() == ([(0, 0), (1, 0), (1, 4), (1, 8)], [(0, 0), (1, 1)])


def test_prompts_take_turns_so_that_a_long_one_holds_up_no_short_one():
    plan = Plan(20, (3, 1), (5, 1))
    assert plan.refill(3) == ([(0, 0), (1, 0), (2, 0)], [(1, 1)])
    assert plan.refill(3) == ([(0, 4), (2, 4), (0, 8)], [(2, 2)])
    assert plan.refill(3) == ([(0, 12), (0, 16)], [(0, 0)])
    assert plan.refill(3) == ([], [])


def test_requests_of_one_prompt_are_prefilled_once():
    plan = Plan(slots=4)
    plan.add(6, samples=3)
    plan.add((6, 1), samples=3)
    assert plan.refill() == ([(0, 0), (3, 0), (0, 4), (3, 4)], [(0, 0), (0, 1), (0, 2), (3, 3)])
    plan.report([5, 1, 5, 1], [False, True, False, True])
    # The two that are left copy what lies in slot 3.
    assert plan.refill() == ([], [(3, 0), (3, 2)])


def test_samples_that_come_later_copy_what_is_there():
    plan = Plan(6)
    assert plan.refill() == ([(0, 0), (0, 4)], [(0, 0)])
    plan.report([1, 0, 0, 0], [True, False, False, False])
    plan.add(6, 5)
    assert plan.refill() == ([(2, 0), (2, 4)], [(0, 1), (2, 2)])


def test_a_prompt_stays_where_it_is_while_a_request_waits_for_it():
    plan = Plan(slots=2)
    plan.add(6, samples=3)
    assert plan.refill() == ([(0, 0), (0, 4)], [(0, 0), (0, 1)])
    turn = plan.scheduler.turn(8)
    assert turn.idle_lengths.tolist() == [6, 6]  # what idle slots write comes behind it
    plan.report([5, 5], [False, False])
    assert plan.refill() == ([], [(0, 0)])
    assert plan.scheduler.turn(8).idle_lengths.tolist() == [0, 0]
    plan.report([5, 0], [False, False])
    assert plan.scheduler.load == (0, 0, 0)
    plan.add(6)
    assert plan.refill()[0] == [(0, 0), (0, 4)]


def test_what_others_wait_for_is_overwritten_last():
    plan = Plan(slots=2)
    plan.add((4, 1), (4, 2), (4, 1), (4, 3), (4, 2))
    assert plan.refill() == ([(0, 0), (1, 0)], [(0, 0), (1, 1)])
    plan.report([5, 5], [False, False])
    # Slot 1 has what the last one waits for, but there is no other place for the fourth.
    assert plan.refill() == ([(1, 0)], [(0, 0), (1, 1)])
    plan.report([5, 1], [False, True])
    assert plan.refill() == ([(0, 0)], [(0, 0)])


def test_a_row_that_is_being_filled_is_kept_so_far():
    plan = Plan((4, 1), 10)
    assert plan.refill(2) == ([(0, 0), (1, 0)], [(0, 0)])
    turn = plan.scheduler.turn(64)
    assert turn.idle_lengths.tolist() == [0, 4, 0, 0]
    assert turn.occupied.tolist() == [True, False, False, False]
    assert turn.max_steps == scheduler.STEPS_WHILE_FILLING
    plan.report([1, 0, 0, 0], [True, False, False, False])
    assert plan.refill(2) == ([(1, 4), (1, 8)], [(1, 1)])
    assert plan.scheduler.turn(64).max_steps == 64


def test_nothing_is_drawn_while_nothing_has_started():
    plan = Plan(10)
    assert plan.scheduler.turn(8) is None
    plan.refill(1)
    assert plan.scheduler.turn(8) is None


def test_the_loop_is_interrupted_only_while_something_waits():
    waiting = Plan(*[3] * 60, slots=56)
    waiting.refill()
    assert waiting.scheduler.turn(8).return_at_idle == 7  # one slot in eight
    few = Plan(*[3] * 9, slots=4)
    few.refill()
    assert few.scheduler.turn(8).return_at_idle == 1
    everything_runs = Plan(3, 3, slots=32)
    everything_runs.refill()
    assert everything_runs.scheduler.turn(8).return_at_idle == 32
    filling = Plan(4, (20, 1), 4, slots=2)
    filling.refill(2)
    assert filling.scheduler.turn(8).return_at_idle == 2  # one is idle as it is


def test_blocks_are_deltas_of_a_request_and_join():
    plan = Plan(3, 3, 3, slots=2, stop_token_ids=(11,))
    plan.refill()
    plan.report([3, 2], [True, False])  # slot 1 drew 10, 11: it stopped itself
    plan.refill()  # request 2 takes slot 1
    plan.report([5, 1], [False, True])
    plan.report([5, 5], [False, False])
    assert plan.scheduler.load == (0, 0, 0)
    first, second, third = (plan.completion(i) for i in range(3))
    assert first.token_ids.tolist() == [0, 1, 2, 0, 1]
    np.testing.assert_allclose(first.logps, [0, -0.1, -0.2, 0, -0.1])
    np.testing.assert_allclose(first.sampled_logps, [0, -0.05, -0.1, 0, -0.05])
    assert first.finish_reason == "length"
    assert second.token_ids.tolist() == [10, 11]
    assert second.finish_reason == "stop"
    assert third.token_ids.tolist() == [10, 10, 11, 12, 13]
    assert third.finish_reason == "length"
    assert [delta.finish_reason for delta in plan.deltas[0]] == [None, "length"]
    assert {delta.version for delta in plan.deltas[0]} == {7}


def test_a_reply_stopped_itself_if_its_last_token_is_a_stop_token():
    plan = Plan(3, 3, slots=2, stop_token_ids=(2, 11))
    plan.refill()
    plan.report([3, 3], [False, False])  # 0, 1, 2 and 10, 11, 12
    assert [plan.completion(i).finish_reason for i in range(2)] == ["stop", "length"]


def test_a_request_that_was_not_followed_to_its_end_has_no_completion():
    plan = Plan(3)
    plan.refill()
    plan.report([3, 0, 0, 0], [True, False, False, False])
    with pytest.raises(RuntimeError, match="request 0 has no completion: it was not followed"):
        plan.completion(0)


def test_an_aborted_request_frees_its_place_wherever_it_is():
    plan = Plan((3, 1), (3, 2), (3, 3), slots=2)
    plan.refill()
    assert plan.scheduler.load == (1, 2, 2)
    assert plan.scheduler.abort(2).id == 2  # waits
    assert plan.scheduler.abort(0).id == 0  # runs
    assert plan.scheduler.abort(0) is None
    assert plan.scheduler.abort(77) is None
    assert plan.scheduler.load == (0, 1, 1)
    # It is not asked to go on, and what it has drawn meanwhile is nobody's.
    assert plan.scheduler.turn(8).occupied.tolist() == [False, True]
    plan.report([4, 5], [True, False])
    assert plan.deltas[0] == []
    assert plan.scheduler.load == (0, 0, 0)


def test_a_prompt_that_is_being_filled_goes_on_for_those_who_wait_for_it():
    plan = Plan(10, 10, 10)
    assert plan.refill(1) == ([(0, 0)], [])
    plan.scheduler.abort(0)
    assert plan.scheduler.load == (0, 2, 1)
    assert plan.refill(5) == ([(0, 4), (0, 8)], [(0, 0), (0, 2)])
    assert plan.scheduler.settings.index[0] == 11  # of request 1
    alone = Plan(10)
    alone.refill(1)
    alone.scheduler.abort(0)
    assert alone.scheduler.load == (0, 0, 0)
    alone.add(10)
    assert alone.refill() == ([(0, 0), (0, 4), (0, 8)], [(0, 0)])


def test_a_prompt_that_nobody_waits_for_any_more_is_not_kept():
    plan = Plan(slots=2)
    plan.add(4, samples=3)
    plan.refill()
    plan.report([5, 5], [False, False])
    assert plan.scheduler.load == (1, 0, 2)
    plan.scheduler.abort(2)
    assert plan.scheduler.load == (0, 0, 0)


def test_what_is_aborted_while_the_device_works_leaves_nothing():
    plan = Plan(slots=2)
    plan.add(4, samples=4)
    plan.refill()
    plan.report([5, 3], [False, True], aborted_meanwhile=[1, 2, 3])
    assert plan.completion(0).token_ids.tolist() == [0, 1, 2, 3, 4]
    assert plan.deltas[1] == []
    assert plan.scheduler.load == (0, 0, 0)


def test_when_the_cache_is_lost_so_is_what_was_in_it_and_nothing_else():
    plan = Plan((3, 1), (3, 2), (3, 2), slots=2)
    plan.refill()
    assert [ticket.id for ticket in plan.scheduler.fail()] == [0, 1]
    assert plan.scheduler.load == (1, 0, 0)
    assert plan.refill() == ([(0, 0)], [(0, 0)])


def test_a_slot_carries_the_settings_of_its_request():
    plan = Plan(3, top_k=7, min_p=0.1, stop_token_ids=(4, 9), temperature=0.5)
    settings = plan.scheduler.settings
    assert settings.temperature[0] == 0.0  # greedy, so that it never asks for a truncation
    plan.refill()
    assert settings.top_k[0] == 7
    assert settings.top_p[0] == 1.0
    assert settings.min_p[0] == np.float32(0.1)
    assert settings.temperature[0] == 0.5
    assert settings.repetition_penalty[0] == 1.0
    assert settings.max_new_tokens[0] == 5
    assert settings.stop_ids[0, :3].tolist() == [4, 9, decode_loop.NO_TOKEN]
    assert settings.keys[0].tolist() == [3, 0]
    assert settings.index[0] == 10
    assert settings.temperature[1] == 0.0


def test_a_request_without_settings_gets_the_neutral_ones():
    plan = Plan(3)
    plan.refill()
    found = plan.scheduler.settings
    assert (found.top_k[0], found.top_p[0], found.min_p[0]) == (0, 1.0, 0.0)
    assert (found.temperature[0], found.repetition_penalty[0]) == (1.0, 1.0)
    assert (found.stop_ids[0] == decode_loop.NO_TOKEN).all()


def test_masks_are_another_array_only_where_a_slot_gets_another_mask():
    mask = np.arange(VOCAB) < 3
    plan = Plan(slots=2)
    plan.add(3, (3, 1), banned=mask)
    before = plan.scheduler.banned
    plan.refill()
    first = plan.scheduler.banned
    assert first is not before
    assert not before.any()
    np.testing.assert_array_equal(first, [mask, mask])
    plan.report([5, 5], [False, False])
    plan.add(3, banned=mask.copy())
    plan.refill()
    assert plan.scheduler.banned is first
    plan.add((3, 2))
    plan.refill()
    np.testing.assert_array_equal(plan.scheduler.banned, [mask, np.zeros(VOCAB, bool)])
