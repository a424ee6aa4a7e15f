"""Completions that are carried over: which tokens, with which log-probabilities and versions."""

import dataclasses
import json

import numpy as np
import pytest
from flax import nnx

from tests.rl import helpers, rollout_steps_test
from tests.rl.collecting import ahead_test as runs
from tunix.generate import completion
from tunix.rl.collecting import partial_rollout
from tunix.rl.grpo import grpo_config
from tunix.utils import config as config_lib

SHORT = dataclasses.replace(helpers.ROLLOUT, eos_tokens=list(range(0, 61, 2)))
"""Half of the tokens end a completion, so that some end early."""


def group(name, count=2):
    return partial_rollout.Group(
        prompt=name,
        prompt_ids=np.asarray([ord(name)], np.int32),
        row={"prompts": name},
        samples=(partial_rollout.Sample.empty(),) * count,
    )


class Script:
    """An engine of two tokens at a time whose completions of a prompt end at given lengths."""

    def __init__(self, lengths):
        self.lengths, self.calls = lengths, []

    def __call__(self, prompts, num_samples):
        self.calls.append(([len(p) for p in prompts], num_samples))
        stretches = []
        for prompt in prompts:
            for sample in range(num_samples):
                # The first token of a completion says which sample it is.
                done = len(prompt) - 1
                index = sample if done == 0 else int(prompt[1]) % 10
                end = self.lengths[chr(prompt[0])][index]
                ids = [10 * (done + i) + index for i in range(min(2, end - done))]
                stretches.append(
                    completion.Completion(
                        token_ids=np.asarray(ids, np.int32),
                        logps=np.asarray(ids, np.float32) / 10,
                        sampled_logps=np.asarray(ids, np.float32) / 20,
                        finish_reason="stop" if done + len(ids) == end else "length",
                    )
                )
        return stretches, 100 + len(self.calls)


def test_what_is_finished_first_is_taken_and_the_rest_goes_on_where_it_was():
    engine = Script({"a": [1, 5], "b": [2, 1], "c": [9, 3]})
    taken, pool = partial_rollout.finish([group(n) for n in "abc"], engine, wanted=1, limit=6)
    assert [one.prompt for one in taken] == ["b"] and [one.prompt for one in pool] == ["a", "c"]
    assert engine.calls == [([1, 1, 1], 2)]
    taken, pool = partial_rollout.finish(pool, engine, wanted=1, limit=6)
    # "a" needs two stretches more, in which "c" reaches its limit of 6 of 9 tokens.
    assert engine.calls[1:] == [([3, 3, 3], 1), ([5, 5], 1)]
    assert [one.prompt for one in taken] == ["a"] and [one.prompt for one in pool] == ["c"]
    short, long = taken[0].samples
    assert (short.token_ids.tolist(), short.finish_reason) == ([0], "stop")
    assert (long.token_ids.tolist(), long.finish_reason) == ([1, 11, 21, 31, 41], "stop")
    assert long.versions.tolist() == [101, 101, 102, 102, 103]
    np.testing.assert_array_equal(long.logps, np.asarray([1, 11, 21, 31, 41], np.float32) / 10)
    np.testing.assert_array_equal(long.sampled_logps, long.logps / 2)
    cut, ended = pool[0].samples
    assert (len(cut.token_ids), cut.finish_reason) == (6, "length")
    assert (len(ended.token_ids), ended.finish_reason) == (3, "stop")
    # All are finished: nothing more is sampled.
    assert partial_rollout.finish(pool, engine, wanted=4, limit=6) == ([pool[0]], ())
    assert len(engine.calls) == 3


def test_unfinished_groups_come_back_from_json_bit_for_bit():
    _, (pool, _) = partial_rollout.finish(
        [group(n, 3) for n in "abc"],
        Script({"a": [1, 5, 3], "b": [2, 1, 2], "c": [9, 3, 5]}),
        wanted=1,
        limit=6,
    )
    back = partial_rollout.from_json(json.loads(json.dumps(partial_rollout.to_json(pool))))
    np.testing.assert_equal(dataclasses.asdict(back), dataclasses.asdict(pool))
    with pytest.raises(ValueError, match="column 'answer' has a set"):
        partial_rollout.to_json(dataclasses.replace(pool, row={"answer": {1}}))


def test_stretches_must_fit_the_length_and_the_algorithm():
    with pytest.raises(config_lib.ConfigError, match="6 is not a multiple of it, 4"):
        helpers.make_learner(helpers.make_cluster(), partial_rollout_tokens=4)
    with pytest.raises(config_lib.ConfigError, match="does not go with dynamic_sampling"):
        grpo_config.GRPOConfig(num_generations=2, dynamic_sampling=True, partial_rollout_tokens=2)
    with pytest.raises(config_lib.ConfigError, match="must be at least 1"):
        grpo_config.GRPOConfig(num_generations=2, partial_rollout_tokens=0)


def test_tokens_of_several_policies_keep_their_own_log_probabilities():
    cluster = helpers.make_cluster(max_steps=4, learning_rate=0.1, rollout=SHORT)
    learner = helpers.make_learner(
        cluster, helpers.share_of_odd_characters, partial_rollout_tokens=2, num_generations=2
    )
    weights, seen = [cluster.actor_trainer.copy_weights()], []
    learn = learner.learn

    def noted(collected):
        seen.extend(collected.groups)
        groups = learn(collected)
        weights.append(cluster.actor_trainer.copy_weights())
        return groups

    learner.learn = noted
    learner.train([{"prompts": [f"{a}{b}" for b in "0123"]} for a in "ABCDE"])
    members = [(group, one) for group in seen for one in group.trajectories]
    assert max(helpers.history(cluster, "staleness_max")) >= 1.0
    assert max(helpers.history(cluster, "carried_tokens")) > 0.0
    mixed = [(g, one) for g, one in members if len(set(one.trained_versions)) > 1]
    alone = [dataclasses.replace(g, trajectories=[one]) for g, one in mixed]
    for version in {v for _, one in mixed for v in one.trained_versions}:
        # Each token under the policy that drew it, from a pass over the whole completion.
        model = helpers.tiny_decoder()
        nnx.update(model, weights[version])
        rows = helpers.naive_logps(model, alone, helpers.ROLLOUT.temperature)
        for (_, one), expected in zip(mixed, rows, strict=True):
            own = one.trained_versions == version
            np.testing.assert_allclose(one.trained_logps[own], expected[own], atol=2e-5)
    assert mixed
    cluster.close()


def partial(directory, steps, dataset=None, **settings):
    return runs.train(
        directory,
        steps=steps,
        dataset=dataset,
        rollout=SHORT,
        reward_fns=helpers.share_of_odd_characters,
        partial_rollout_tokens=2,
        num_generations=2,
        **settings,
    )


@pytest.mark.slow
def test_all_prompts_are_trained_on_once_before_the_data_ends(tmp_path):
    data = [{"prompts": [f"{a}{b}" for b in "0123"]} for a in "ABC"] + [{"prompts": ["D0", "D1"]}]
    partial(tmp_path, None, data, ahead=1)
    prompts = [row["prompt"] for row in runs.completions(tmp_path)]
    assert sorted(prompts) == sorted(p for batch in data for p in batch["prompts"] for _ in "12")
    assert max(row["step"] for row in runs.completions(tmp_path)) == 4


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [0, 1])
def test_a_resumed_run_goes_on_with_what_was_carried_over(tmp_path, ahead):
    partial(tmp_path / "whole", 6, ahead=ahead)
    assert max(row["train/carried_tokens"] for row in runs.log(tmp_path / "whole")) > 0.0
    for steps in (2, 3, 6):
        partial(tmp_path / "parts", steps, ahead=ahead)
    runs.assert_equal_runs(tmp_path / "parts", tmp_path / "whole")
    if ahead == 0:
        options = rollout_steps_test.run_settings(tmp_path / "parts")
        cluster = helpers.make_cluster(max_steps=8, **options)
        learner = helpers.make_learner(cluster)
        with pytest.raises(ValueError, match="set partial_rollout_tokens again"):
            learner.train(rollout_steps_test.prompt_batches())
        cluster.close()
