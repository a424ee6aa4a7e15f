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
    source = blocks[-1]
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


def test_the_short_examples_of_the_page_work(blocks, monkeypatch):
    monkeypatch.setattr(function_registry, "default_registry", function_registry.FunctionRegistry())
    scope = {"GRPOConfig": grpo_config.GRPOConfig}
    for source in blocks[:2]:
        exec(compile(source, str(PAGE), "exec"), scope)
    rewards = np.array([[0.0, 1.0]])
    np.testing.assert_array_equal(scope["config"].advantage_fn(rewards), [[-1.0, 0.0]])
    named = grpo_config.GRPOConfig(advantage_estimator="regret", beta=0.0)
    np.testing.assert_array_equal(named.advantage_fn(rewards), [[-1.0, 0.0]])
