"""Completions without a model have the lengths they are asked for, and follow from the key."""

import functools

import jax
import numpy as np
import optax
import pytest

from tests.rl import helpers
from tunix.rl import rl_cluster
from tunix.rl.rollout import base_rollout, mock_rollout
from tunix.tokenizers import tokenizer_adapter

LONGEST = 16
CONFIG = base_rollout.RolloutConfig(max_tokens_to_generate=LONGEST)


def engine(**settings):
    tokenizer = tokenizer_adapter.TokenizerAdapter(helpers.CharTokenizer())
    return mock_rollout.MockRollout(
        model=None, tokenizer=tokenizer, cache_size=32, max_slots=4, **settings
    )


def sample(count=400, seed=0, config=CONFIG, **settings):
    return engine(**settings).generate([[5]] * count, config, key=jax.random.key(seed))


def test_equal_keys_give_equal_completions_and_other_keys_others():
    first, again, other = sample(seed=3), sample(seed=3), sample(seed=4)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
    assert any(
        a.token_ids.tolist() != b.token_ids.tolist() for a, b in zip(first, other, strict=True)
    )
    assert len({tuple(one.token_ids.tolist()) for one in first}) > 300, "samples repeat each other"


def test_a_completion_does_not_depend_on_what_stands_around_it():
    alone, among = sample(count=2), sample(count=5)
    for a, b in zip(alone, among[:2], strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)


def test_completions_end_themselves_or_are_cut_off():
    for one in sample():
        ends = one.token_ids == 0
        assert not ends[:-1].any()
        assert ends[-1] == (one.finish_reason == "stop")
        assert one.finish_reason == "stop" or len(one.token_ids) == LONGEST
    assert {one.finish_reason for one in sample()} == {"stop", "length"}


@pytest.mark.parametrize(
    ("lengths", "mean"),
    [
        pytest.param(mock_rollout.of_lengths([4]), 4.0, id="constant"),
        # 1 to 16 evenly, and one of 17 in 17 cut to 16: (1 + ... + 16 + 16) / 17.
        pytest.param(mock_rollout.uniform(), 152 / 17, id="uniform"),
        pytest.param(mock_rollout.of_lengths([2, 8, 8]), 6.0, id="observed"),
    ],
)
def test_lengths_follow_their_distribution(lengths, mean):
    found = [len(one.token_ids) for one in sample(count=3000, lengths=lengths)]
    assert np.mean(found) == pytest.approx(mean, abs=5 * 5 / np.sqrt(3000))


def test_half_of_log_normal_lengths_are_below_the_median_and_the_tail_is_long():
    wide = base_rollout.RolloutConfig(max_tokens_to_generate=10_000)
    lengths = mock_rollout.log_normal(100.0, 0.7)
    found = [len(one.token_ids) for one in sample(count=1000, config=wide, lengths=lengths)]
    assert np.mean(np.asarray(found) <= 100) == pytest.approx(0.5, abs=0.06)
    # The mean of a log-normal is its median times exp(sigma^2 / 2).
    assert np.mean(found) == pytest.approx(100 * np.exp(0.245), rel=0.1)


def test_log_probabilities_are_those_of_an_even_draw():
    (one,) = sample(count=1, vocabulary=[7, 8, 9])
    assert set(one.token_ids.tolist()) <= {0, 7, 8, 9}
    np.testing.assert_allclose(one.logps, np.log(0.25), rtol=1e-6)


def test_a_length_below_one_is_an_error():
    with pytest.raises(ValueError, match="a length function returned 0"):
        sample(count=1, lengths=lambda generator, longest: 0)


def test_a_cluster_takes_it_by_name_or_with_settings():
    texts = []
    for chosen in (
        "mock",
        functools.partial(mock_rollout.MockRollout, lengths=mock_rollout.of_lengths([2])),
    ):
        cluster = rl_cluster.RLCluster(
            actor=helpers.tiny_decoder(),
            tokenizer=helpers.CharTokenizer(),
            cluster_config=rl_cluster.ClusterConfig(
                training_config=rl_cluster.RLTrainingConfig(
                    actor_optimizer=optax.sgd(0.1), eval_every_n_steps=1
                ),
                rollout_config=helpers.ROLLOUT,
                rollout_engine=chosen,
                offload_to_cpu=True,
            ),
        )
        texts.append(cluster.generate(["AB", "C"], num_samples=3).text)
        cluster.sync_weights()
    assert len(texts[0]) == 6
    assert [len(text) for text in texts[1]] == [1] * 6
