"""Managers of one's own, the one of docs/how-to/rewards.md among them."""

import re

import numpy as np
import pytest

from tests.repo import source
from tests.rl import helpers
from tunix.rl import algorithm_config, function_registry, reward_manager
from tunix.rl.grpo import grpo_learner
from tunix.rl.scoring import rewards
from tunix.utils import config as config_lib

PAGE = source.ROOT / "docs" / "how-to" / "rewards.md"


@pytest.fixture
def page_manager(monkeypatch):
    """Return the class of the guide, registered in a registry of its own."""
    monkeypatch.setattr(function_registry, "default_registry", function_registry.FunctionRegistry())
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "register_reward_manager" in block]
    names = {}
    exec(compile(block, str(PAGE), "exec"), names)
    return names["FormFirst"]


def form(prompt, completion):
    return float(completion.startswith("ok"))


def length(prompt, completion):
    return None if completion == "ok" else len(completion) / 10


def call(manager, completions):
    return manager(["?"] * len(completions), completions, {})


def test_the_manager_of_the_guide_combines_as_it_says(page_manager):
    result = call(page_manager([form, length], [2.0, 0.5]), ["ok go", "no", "ok"])
    np.testing.assert_allclose(result.total, [2.0 * (1 + 0.25), 0.0, 2.0])
    # What each function said is kept apart, whatever becomes of it.
    np.testing.assert_allclose(result.per_function["length"], [0.5, 0.2, np.nan])


@pytest.mark.parametrize("chosen", ["form-first", "class", "factory"])
def test_a_learner_takes_a_name_a_class_or_a_function_that_makes_one(page_manager, chosen):
    manager = {
        "form-first": "form-first",
        "class": page_manager,
        "factory": lambda fns, weights: page_manager(fns, weights),
    }[chosen]
    config = grpo_learner.GRPOConfig(beta=0.0, reward_manager=manager)
    made = config.reward_manager_class([form, length], None)
    assert isinstance(made, page_manager)
    np.testing.assert_allclose(call(made, ["ok go"]).total, [1.5])


class Judge(reward_manager.AbstractRewardManager):
    """Scores by rank: a reply's worth depends on all the others."""

    def __init__(self, reward_fns, weights):
        assert (reward_fns, weights) == ([], None)

    def __call__(self, prompts, completions, columns):
        ranks = np.argsort(np.argsort([len(set(text)) for text in completions]))
        total = ranks / len(completions)
        return reward_manager.RewardResult(total=total, per_function={"rank": total})


def test_a_manager_from_scratch_trains_a_policy_and_is_logged():
    cluster = helpers.make_cluster()
    config = grpo_learner.GRPOConfig(beta=0.0, num_generations=4, reward_manager=Judge)
    learner = grpo_learner.GRPOLearner(cluster, config, [])
    learner.train([{"prompts": helpers.PROMPTS}])
    np.testing.assert_allclose(helpers.history(cluster, "reward/rank"), [15 / 32])


class Wrong(rewards.RewardManager):
    def combine(self, scores):
        return self.answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1.0], r"Wrong.combine returned shape \(1,\) for 2 completions"),
        ([1.0, np.nan], r"returned nan for 1 completions, first at sample 1.*'no'"),
        ([1.0, -1e39], r"returned -1e\+39 for 1 completions, first at sample 1.*'no'"),
    ],
)
def test_a_total_that_is_none_is_refused(answer, message):
    manager = Wrong(form)
    manager.answer = answer
    with pytest.raises(rewards.RewardError, match=message):
        call(manager, ["ok", "no"])


def test_an_object_where_a_class_belongs_is_refused():
    with pytest.raises(config_lib.ConfigError, match="must be a class"):
        algorithm_config.AlgorithmConfig(reward_manager=rewards.RewardManager(form))
    with pytest.raises(KeyError, match="did you mean 'sequence-level'"):
        function_registry.get_reward_manager("sequence_level")
