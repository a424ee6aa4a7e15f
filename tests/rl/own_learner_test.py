"""The learner in docs/how-to/your_own_learner.md is short, and works as it stands there."""

import pathlib
import re

import numpy as np
import pytest

from tests.rl import helpers
from tunix.rl import function_registry
from tunix.rl.grpo import grpo_config
from tunix.utils import config as config_lib

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "how-to" / "your_own_learner.md"


@pytest.fixture
def blocks():
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def test_the_learner_of_the_page_learns(blocks):
    source = blocks[2]
    assert len(source.splitlines()) < 60
    scope = {"__name__": "own_learner"}
    exec(compile(source, str(PAGE), "exec"), scope)
    cluster = helpers.make_cluster()
    config = scope["BestOfConfig"](num_generations=8, beta=0.0)
    learner = scope["BestOfLearner"](cluster, config, helpers.share_of_odd_characters)
    learner.train([{"prompts": helpers.PROMPTS}] * 8)
    reward = helpers.history(cluster, "reward")
    assert reward[-1] > reward[0] + 0.2
    assert 0.0 < helpers.history(cluster, "chosen")[0] < 1.0
    with pytest.raises(config_lib.ConfigError, match="margin must not be negative"):
        scope["BestOfConfig"](margin=-1.0)


@pytest.mark.parametrize("ahead", [0, 1])
def test_the_collector_of_the_page_asks_twice_in_every_step(blocks, ahead):
    scope = {"__name__": "own_collector"}
    exec(compile(blocks[3], str(PAGE), "exec"), scope)
    cluster = helpers.make_cluster()
    learner = helpers.make_learner(
        cluster, helpers.share_of_odd_characters, off_policy_steps=ahead, num_generations=2
    )
    learner.collector = scope["WidestCollector"]()
    learned, learn = [], learner.learn

    def noted(collected):
        learned.append(collected)
        return learn(collected)

    learner.learn = noted
    names = ["AB", "CD", "EF", "GH", "IJ"]
    learner.train([{"prompts": [name, name[::-1]]} for name in names])
    asked = [{g.prompt for g in (*one.groups, *one.discarded)} for one in learned]
    # Two batches each, in order; the last finds only one.
    assert asked == [{"AB", "BA", "CD", "DC"}, {"EF", "FE", "GH", "HG"}, {"IJ", "JI"}]

    def spread(group):
        rewards = [one.reward for one in group.trajectories]
        return max(rewards) - min(rewards)

    for one in learned:
        assert len(one.groups) == 2
        assert min(map(spread, one.groups)) >= max(map(spread, one.discarded), default=0.0)
    expected = [np.mean([spread(g) for g in one.groups]) for one in learned]
    np.testing.assert_allclose(helpers.history(cluster, "spread"), expected)


def test_the_short_examples_of_the_page_work(blocks, monkeypatch):
    monkeypatch.setattr(function_registry, "default_registry", function_registry.FunctionRegistry())
    scope = {"GRPOConfig": grpo_config.GRPOConfig}
    for source in blocks[:2]:
        exec(compile(source, str(PAGE), "exec"), scope)
    rewards = np.array([[0.0, 1.0]])
    np.testing.assert_array_equal(scope["config"].advantage_fn(rewards), [[-1.0, 0.0]])
    named = grpo_config.GRPOConfig(advantage_estimator="regret", beta=0.0)
    np.testing.assert_array_equal(named.advantage_fn(rewards), [[-1.0, 0.0]])
