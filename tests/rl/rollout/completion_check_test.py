import numpy as np
import pytest

from tests.rl import helpers
from tunix.generate import completion
from tunix.rl.rollout import base_rollout, completion_check


def one(length, logps=None):
    values = np.full(length, -1.0, np.float32) if logps is None else np.float32(logps)
    return completion.Completion(
        token_ids=np.arange(length, dtype=np.int32),
        logps=values,
        sampled_logps=values,
        finish_reason="stop",
    )


def check(*completions, count=None):
    count = len(completions) if count is None else count
    completion_check.check(completions, engine="Mine", count=count, longest=3)


def test_completions_of_any_length_up_to_the_longest_are_fine():
    check(one(0), one(1), one(3))


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_or_too_many_are_an_error(count):
    with pytest.raises(completion_check.CompletionError, match=f"where {count} were asked for"):
        check(one(1), one(1), count=count)


def test_all_that_is_wrong_is_reported():
    with pytest.raises(completion_check.CompletionError) as caught:
        check(one(4), one(2, [-1.0]), one(2, [-1.0, np.nan]), one(1, [-np.inf]))
    assert caught.value.problems == (
        "completion 0: 4 tokens, more than max_tokens_to_generate 3",
        "completion 1: logps of shape (1,) for token_ids of shape (2,)",
        "completion 2: the log-probability of token 1 is nan; it was sampled, so it is finite",
        "completion 3: the log-probability of token 0 is -inf; it was sampled, so it is finite",
    )


def test_long_lists_are_cut():
    with pytest.raises(completion_check.CompletionError, match="and 15 more"):
        check(*[one(4)] * 20)


class Forgetful(base_rollout.BaseRollout):
    """An engine that returns one log-probability too few."""

    def __init__(self, **settings):
        pass

    def generate(self, prompts, rollout_config, *, key, num_samples=1):
        return [one(3, [-1.0, -1.0])] * (len(prompts) * num_samples)

    def update_params(self, params):
        pass


@pytest.mark.parametrize("partial_rollout_tokens", [None, 3])
def test_nothing_is_learned_from_an_engine_that_forgets(partial_rollout_tokens):
    cluster = helpers.make_cluster(rollout_engine=Forgetful)
    learner = helpers.make_learner(cluster, partial_rollout_tokens=partial_rollout_tokens)
    with pytest.raises(completion_check.CompletionError, match=r"Forgetful\.generate returned"):
        learner.train([{"prompts": ["A"]}])
    assert cluster.actor_trainer.train_steps == 0
