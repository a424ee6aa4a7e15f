import dataclasses

import pytest

from tests.rl import helpers
from tunix.rl.collecting import dynamic

LIVE, DEAD = [1.0, -1.0], [0.0, 0.0]


def with_rewards(group, shaping=None):
    """Return the group with its advantages for rewards, the shaping by length among them."""
    members = [
        dataclasses.replace(
            one, reward=one.advantage, rewards={} if shaping is None else {"overlong": shaping[i]}
        )
        for i, one in enumerate(group.trajectories)
    ]
    return dataclasses.replace(group, trajectories=members)


def run(rounds, *, max_rounds=10):
    """Collect where each round of two prompts gives groups of these advantages."""
    batches = [{"prompts": [f"{i}a", f"{i}b"]} for i in range(len(rounds))]
    rest = iter(batches[1:])
    calls = []

    class Scripted:
        def draw(self):
            return next(rest, None)

        def groups(self, columns):
            call = len(calls)
            calls.append((columns["prompts"][0], call))
            return [with_rewards(group) for group in helpers.make_groups(rounds[call], seed=call)]

    found = dynamic.DynamicCollector(max_rounds).collect(batches[0], Scripted())
    return found, calls, list(rest)


def test_a_full_batch_is_sampled_once():
    found, calls, rest = run([[LIVE, LIVE], [LIVE, LIVE]])
    assert len(found.groups) == 2
    assert not found.discarded
    assert calls == [("0a", 0)]
    assert len(rest) == 1  # no prompt is drawn that is not needed
    assert found.metrics["sampling_rounds"] == 1.0


def test_dead_groups_are_replaced_until_the_batch_is_full():
    found, calls, _ = run([[LIVE, DEAD], [DEAD, DEAD], [LIVE, LIVE]])
    assert [group.is_dead for group in found.groups] == [False, False]
    assert len(found.discarded) == 4
    assert [call for _, call in calls] == [0, 1, 2]
    assert found.metrics == {
        "sampling_rounds": 3.0,
        "sampled_groups": 6.0,
        "discarded_groups": 1.0,
        "batch_fill": 1.0,
    }


@pytest.mark.parametrize(
    ("rounds", "max_rounds"),
    [([[LIVE, DEAD], [DEAD, DEAD], [LIVE, LIVE]], 2), ([[LIVE, DEAD], [DEAD, DEAD]], 10)],
    ids=["rounds are bounded", "the data ends"],
)
def test_what_there_is_is_trained_on_when_no_more_can_be_had(rounds, max_rounds):
    found, calls, _ = run(rounds, max_rounds=max_rounds)
    assert len(calls) == 2
    assert len(found.groups) == 1
    assert found.metrics["batch_fill"] == 0.5


def test_without_any_signal_the_step_is_taken_and_has_none():
    found, _, _ = run([[DEAD, DEAD], [DEAD, DEAD]])
    assert [group.is_dead for group in found.groups] == [True, True]
    assert len(found.discarded) == 2
    assert found.metrics["batch_fill"] == 0.0


def test_a_group_that_differs_in_length_alone_has_no_signal():
    (group,) = helpers.make_groups([[-0.1, -0.7]])
    assert not dynamic.has_signal(with_rewards(group, shaping=[-0.1, -0.7]))
    assert dynamic.has_signal(with_rewards(group, shaping=[-0.1, -0.6]))
    assert dynamic.has_signal(with_rewards(group))


def test_rewards_that_are_shaped_alike_are_alike_but_for_rounding():
    (group,) = helpers.make_groups([[0.1 - 0.1, 0.1 - 0.7]])
    assert (0.1 - 0.1) + 0.1 != (0.1 - 0.7) + 0.7
    assert not dynamic.has_signal(with_rewards(group, shaping=[-0.1, -0.7]))
