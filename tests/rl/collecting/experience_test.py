import numpy as np
import pytest

from tests.rl import helpers
from tunix.generate import completion
from tunix.rl.collecting import experience
from tunix.rl.rollout import base_rollout
from tunix.rl.scoring import rewards


def output_of(texts_by_prompt):
    completions, texts = [], []
    for members in texts_by_prompt.values():
        for text in members:
            ids = np.asarray(helpers.CharTokenizer().encode(text), np.int32)
            completions.append(
                completion.Completion(
                    token_ids=ids,
                    logps=-np.ones(len(ids), np.float32),
                    sampled_logps=np.zeros(len(ids), np.float32),
                    finish_reason="stop" if len(ids) < 3 else "length",
                )
            )
            texts.append(text)
    return base_rollout.RolloutOutput(
        prompts=list(texts_by_prompt),
        prompt_tokens=[np.asarray([1], np.int32) for _ in texts_by_prompt],
        completions=completions,
        text=texts,
    )


def matches(prompts, completions, answer, finish_reasons):
    return [
        float(text == wanted) + 10.0 * (reason == "length")
        for text, wanted, reason in zip(completions, answer, finish_reasons, strict=True)
    ]


def test_every_completion_meets_the_columns_of_its_own_prompt():
    output = output_of({"p": ["A", "B"], "q": ["B", "CCC"]})
    batch = {"prompts": ["p", "q"], "answer": ["A", "B"]}
    scored = experience.score(output, batch, rewards.RewardManager(matches), num_samples=2)
    np.testing.assert_array_equal(scored.rewards.total, [1.0, 0.0, 1.0, 10.0])
    assert scored.prompts == ["p", "p", "q", "q"]

    groups = experience.group(
        scored, lambda r: r - r.mean(axis=1, keepdims=True), num_samples=2, policy_version=3
    )
    assert [[t.advantage for t in g.trajectories] for g in groups] == [[0.5, -0.5], [-4.5, 4.5]]
    last = groups[1].trajectories[1]
    assert (last.text, last.reward, last.rewards) == ("CCC", 10.0, {"matches": 10.0})
    assert (last.finish_reason, last.policy_version, last.truncated) == ("length", 3, True)
    np.testing.assert_array_equal(last.trained_logps, [-1.0, -1.0, -1.0])


@pytest.mark.parametrize("values", [np.zeros((1, 2)), np.zeros(2)])
def test_advantages_must_have_the_shape_of_the_rewards(values):
    output = output_of({"p": ["A"], "q": ["B"]})
    batch = {"prompts": ["p", "q"], "answer": ["A", "B"]}
    scored = experience.score(output, batch, rewards.RewardManager(matches), num_samples=1)
    with pytest.raises(ValueError, match="for rewards of shape"):
        experience.group(scored, lambda r: values, num_samples=1, policy_version=0)
