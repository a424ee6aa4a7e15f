import collections
import json

import numpy as np
import pytest

from tests.rl import helpers
from tunix.rl import trajectory
from tunix.rl.collecting import curriculum
from tunix.utils import config as config_lib

ROWS = [{"prompts": f"{i}", "answer": i} for i in range(6)]


def make(*, num_batches=None, seed=0, rows=ROWS, **settings):
    config = curriculum.CurriculumConfig(**settings)
    return curriculum.Curriculum(rows, config, batch_size=2, num_batches=num_batches, seed=seed)


def group(key, rewards):
    members = [
        trajectory.Trajectory(
            spans=helpers.spans_of(np.zeros(1, np.int32), [0]), finish_reason="stop", reward=reward
        )
        for reward in rewards
    ]
    return trajectory.Group(prompt="?", prompt_key=key, trajectories=members)


def test_weights_follow_the_running_solve_rates_by_hand():
    drawn = make(memory=0.5, floor=0.1)
    metrics = drawn.observe([group(0, [1, 1, 1, 1]), group(1, [0, 0]), group(2, [1, 0])])
    # Rates 0.75, 0.25 and 0.5; unseen prompts count as 0.5.
    np.testing.assert_allclose(drawn.weights(), [0.75, 0.75, 1, 1, 1, 1])
    assert metrics == {"curriculum_seen": 0.5, "curriculum_solve_rate": 0.5}
    for _ in range(9):
        drawn.observe([group(0, [1, 1, 1, 1])])
    assert drawn.weights()[0] == 0.1


def test_prompts_are_drawn_by_their_weights():
    drawn = make(memory=0.0, floor=0.02)
    drawn.observe([group(i, [0.0]) for i in range(4)])
    counts = collections.Counter(i for _ in range(300) for i in next(drawn)["prompt_key"])
    assert counts[4] > 250 and counts[5] > 250 and 0 < counts[0] < 40
    batch = next(drawn)
    assert batch["answer"] == batch["prompt_key"] and len(set(batch["prompt_key"])) == 2


def test_a_resumed_curriculum_draws_what_an_uninterrupted_one_draws():
    def step(drawn):
        batch = next(drawn)
        rewards = [[1.0, float(i % 2)] for i in batch["prompt_key"]]
        drawn.observe([group(*pair) for pair in zip(batch["prompt_key"], rewards, strict=True)])
        return batch

    whole, part = make(), make()
    expected = [step(whole) for _ in range(8)]
    assert [step(part) for _ in range(5)] == expected[:5]
    state = json.loads(json.dumps(part.get_state()))
    resumed = make()
    resumed.set_state(state)
    assert [step(resumed) for _ in range(3)] == expected[5:]
    assert [next(make(seed=1)) for _ in range(3)] != expected[:3]
    with pytest.raises(ValueError, match="belong to other prompts"):
        make(rows=ROWS[1:]).set_state(state)


def test_it_ends_after_its_batches():
    assert len(list(make(num_batches=3))) == len(make(num_batches=3)) == 3
    with pytest.raises(TypeError, match="no length"):
        len(make())


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="no batch of 2"):
        make(rows=ROWS[:1])
    with pytest.raises(ValueError, match="which the curriculum adds"):
        make(rows=[{"prompts": "a", "prompt_key": 1}] * 3)
    with pytest.raises(config_lib.ConfigError, match="floor must lie"):
        curriculum.CurriculumConfig(floor=0.0)


@pytest.mark.slow
def test_a_learner_tells_the_curriculum_what_was_solved():
    cluster = helpers.make_cluster(max_steps=2)
    learner = helpers.make_learner(cluster, helpers.share_of_odd_characters)
    drawn = curriculum.Curriculum(
        [{"prompts": p} for p in helpers.PROMPTS],
        curriculum.CurriculumConfig(solved_at=0.5),
        batch_size=2,
        num_batches=None,
        seed=0,
    )
    learner.train(drawn)
    state = drawn.get_state()
    assert state["draws"] == 2 and 2 <= len(state["rates"]) <= 4
    assert any(rate != curriculum.UNSEEN_RATE for rate in state["rates"].values())
    assert helpers.history(cluster, "curriculum_seen")[-1] == len(state["rates"]) / 4
