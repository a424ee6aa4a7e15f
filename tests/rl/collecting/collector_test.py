"""Collectors of another kind than the library's: many turns, and an environment that answers."""

import dataclasses

import numpy as np
import pytest

from tests.rl import helpers
from tunix.rl import trajectory
from tunix.rl.collecting import collector

ANSWER = np.asarray(helpers.CharTokenizer().encode("NO!"), np.int32)


class Dialogue(collector.Collector):
    """The policy speaks, the environment says no, and the policy speaks again."""

    def collect(self, batch, rollout):
        prompts = rollout.sampler.encode(rollout.scorer.check(batch)["prompts"])
        count = rollout.sampler.num_samples
        talks = [
            trajectory.Trajectory(
                spans=(trajectory.Span(token_ids=one.token_ids, author="prompt"),)
            )
            for one in prompts
            for _ in range(count)
        ]
        answer = trajectory.Span(token_ids=ANSWER, author="environment")
        talks = [talk.appended(answer) for talk in self.spoken(talks, 0, rollout)]
        talks = self.spoken(talks, 1, rollout)
        rollout.release()
        fives = [[span.token_ids for span in talk.trained_spans] for talk in talks]
        earned = np.asarray([np.mean(np.concatenate(ids) == ord("5") - 30) for ids in fives])
        advantages = rollout.scorer.advantage_fn(earned.reshape(-1, count)).ravel()
        talks = [
            dataclasses.replace(talk, reward=float(r), advantage=float(a), finish_reason="stop")
            for talk, r, a in zip(talks, earned, advantages, strict=True)
        ]
        groups = [
            trajectory.Group(prompt=one.text, trajectories=talks[p * count : (p + 1) * count])
            for p, one in enumerate(prompts)
        ]
        return collector.Collected(groups=groups, metrics={"turns": 2.0})

    def spoken(self, talks, turn, rollout):
        texts = [np.concatenate([span.token_ids for span in talk.spans]) for talk in talks]
        sampled = rollout.extend(texts, num_samples=1, max_tokens=2)
        return [
            talk.appended(
                trajectory.Span(
                    token_ids=one.token_ids,
                    author="policy",
                    turn=turn,
                    logps=one.logps,
                    versions=np.full(len(one.token_ids), sampled.policy_version, np.int32),
                    trained=True,
                )
            )
            for talk, one in zip(talks, sampled.output.completions, strict=True)
        ]


def learner_of_dialogues(**settings):
    cluster = helpers.make_cluster()
    learner = helpers.make_learner(cluster, num_generations=3, **settings)
    learner.collector = Dialogue()
    return learner


def test_each_turn_is_drawn_behind_all_that_was_said():
    learner = learner_of_dialogues()
    rollout = learner.new_rollout()
    found = learner.collector.collect({"prompts": ["AB", "CDEF"]}, rollout)
    talks = [talk for group in found.groups for talk in group.trajectories]
    assert [[span.author for span in talk.spans] for talk in talks] == [
        ["prompt", "policy", "environment", "policy"]
    ] * 6
    assert len({tuple(talk.answer_ids.tolist()) for talk in talks}) == 6  # all draws differ
    # The environment's words are part of what the second turn is conditioned on.
    for talk in talks:
        model, temperature = helpers.tiny_decoder(), helpers.ROLLOUT.temperature
        ids = np.concatenate([span.token_ids for span in talk.spans])
        logits = np.asarray(model(ids[None])[0], np.float64)[0] / temperature
        logps = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        start = 0
        for span in talk.spans:
            end = start + len(span.token_ids)
            if span.author == "policy":
                own = logps[np.arange(start - 1, end - 1), span.token_ids]
                np.testing.assert_allclose(span.logps, own, atol=2e-5)
            start = end


def test_what_was_sampled_before_a_restart_is_given_again_turn_by_turn():
    learner = learner_of_dialogues()
    batch = {"prompts": ["AB", "CDEF"]}
    first = learner.new_rollout()
    learner.collector.collect(batch, first)
    assert len(first.sampled) == 2
    learner.rl_cluster.rollout.generate = None  # the weights are gone
    again = learner.new_rollout(replay=first.sampled)
    found = learner.collector.collect(batch, again)
    ids = [s.token_ids for g in found.groups for t in g.trajectories for s in t.trained_spans]
    spoken = [one.output.completions for one in first.sampled]
    expected = [one.token_ids for pair in zip(*spoken, strict=True) for one in pair]
    np.testing.assert_equal(ids, expected)


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_learner_trains_on_dialogues(ahead):
    learner = learner_of_dialogues(off_policy_steps=ahead)
    learner.train([{"prompts": ["AB", "CDEF"]}] * 3)
    cluster = learner.rl_cluster
    assert cluster.actor_trainer.train_steps == 3
    assert helpers.history(cluster, "turns").tolist() == [2.0] * 3
    assert helpers.history(cluster, "staleness").tolist() == [0.0, *[float(ahead)] * 2]
    # Sampler and trainer agree on every trained token, so both see the same conversation.
    assert helpers.history(cluster, "mismatch_max")[0] < 1e-5
