import dataclasses

import numpy as np
import pytest

from tests.rl import helpers
from tunix.rl import reward_manager
from tunix.rl.collecting import prompt_batch
from tunix.rl.monitoring import evaluation
from tunix.rl.scoring import rewards
from tunix.utils import config as config_lib

BATCHES = [
    {"prompts": ["A", "BC", "D"], "worth": [0.0, 1.0, 2.0]},
    {"prompts": ["EF"], "worth": [7.0]},
]


def worth(completions, worth, finish_reasons):
    assert len(finish_reasons) == len(completions)
    return worth


@pytest.fixture(scope="module")
def cluster():
    return helpers.make_cluster()


def evaluate(cluster, batches=BATCHES, reward_fns=worth, **options):
    key = cluster.sampling_key(helpers.rl_cluster.Mode.EVAL, 0)
    return evaluation.evaluate(cluster, batches, reward_fns, key=key, **options)


def test_every_completion_of_every_batch_counts_alike(cluster):
    # The mean of the batches' means would be 4.
    result = evaluate(cluster)
    assert result.mean_reward == 2.5
    assert result.accuracy == 0.75
    assert result.metrics["reward/worth"] == 2.5
    assert len(result.completions) == len(result.lengths) == 4


def right(completions, worth):
    return [1.0 if value == 2.0 else None for value in worth]


def fails(completion, worth):
    if worth > 1.0:
        raise OSError("down")
    return 0.5


def test_accuracy_is_about_one_function_whatever_the_others_say():
    functions = [worth, right, rewards.Reward(fn=fails, on_error=0.0)]
    found = {}
    for name in (None, "right", "fails"):
        cluster = helpers.make_cluster(accuracy_function=name)
        found[name] = evaluate(cluster, reward_fns=functions)
    assert [one.accuracy for one in found.values()] == [0.75, 0.25, 0.0]
    assert found[None].accuracy_function == "worth"
    assert found["right"].right.tolist() == [False, False, True, False]
    assert found[None].metrics["reward_failed/fails"] == 0.5
    assert len({one.mean_reward for one in found.values()}) == 1


class Judge(reward_manager.AbstractRewardManager):
    """Compares replies, and has no function of its own."""

    def __call__(self, prompts, completions, columns):
        return reward_manager.RewardResult(total=np.asarray(columns["worth"]), per_function={})


def test_accuracy_is_about_the_reward_where_a_manager_has_no_functions(cluster):
    result = evaluate(cluster, reward_fns=Judge())
    assert result.accuracy_function == "reward" and result.mean_reward == 2.5
    assert result.right.tolist() == [False, True, True, True]
    with pytest.raises(config_lib.ConfigError, match=r"'worth' is not one of \[\]"):
        evaluate(helpers.make_cluster(accuracy_function="worth"), reward_fns=Judge())


def test_a_function_for_accuracy_that_is_none_is_told_of_before_training():
    cluster = helpers.make_cluster(accuracy_function="wort")
    learner = helpers.make_learner(cluster, worth)
    data = [{"prompts": ["A"], "worth": [1.0]}]
    with pytest.raises(config_lib.ConfigError, match=r"'wort' is not one of \['worth'\]"):
        learner.train(data, data)
    assert cluster.actor_trainer.train_steps == 0
    with pytest.raises(config_lib.ConfigError, match="did you mean 'worth'"):
        evaluate(cluster)


def test_several_samples_of_a_question_share_its_columns(cluster):
    result = evaluate(cluster, num_samples=3)
    np.testing.assert_array_equal(result.rewards, np.repeat([0.0, 1.0, 2.0, 7.0], 3))


def test_greedy_answers_do_not_depend_on_the_key(cluster):
    keys = [cluster.sampling_key(helpers.rl_cluster.Mode.EVAL, step) for step in (1, 2)]
    first, second = (
        evaluation.evaluate(cluster, BATCHES, worth, key=key, temperature=0.0) for key in keys
    )
    assert first.completions == second.completions
    hot = [evaluation.evaluate(cluster, BATCHES, worth, key=key) for key in keys]
    assert hot[0].completions != hot[1].completions


def test_missing_columns_are_reported_before_sampling(cluster):
    with pytest.raises(rewards.RewardError, match="needs the column 'worth'"):
        evaluate(cluster, [{"prompts": ["A"]}])


def test_no_questions_are_an_error(cluster):
    with pytest.raises(prompt_batch.PromptBatchError):
        evaluate(cluster, [])


def test_evaluation_samples_with_its_own_settings():
    Mode = helpers.rl_cluster.Mode
    short = dataclasses.replace(helpers.ROLLOUT, max_tokens_to_generate=2)
    cluster = helpers.make_cluster(rollout={Mode.TRAIN: helpers.ROLLOUT, Mode.EVAL: short})
    assert max(evaluate(cluster).lengths) <= 2
