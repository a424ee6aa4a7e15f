"""Prompts and settings are checked all at once."""

import pickle

import jax
import numpy as np
import pytest

from tunix.generate import plain_engine, requests, sampling_params
from tunix.utils import config


def check(prompts, *, max_new_tokens=4, cache_size=10):
    params = sampling_params.SamplingParams(max_new_tokens=max_new_tokens)
    return requests.check(prompts, params, cache_size=cache_size, vocab_size=9)


def test_a_prompt_may_fill_the_cache_to_the_last_slot():
    assert len(check([[1] * 6])[0].token_ids) == 6
    with pytest.raises(
        requests.PromptError, match=r"prompt 0 has 7 tokens.*exceeds the cache of 10"
    ):
        check([[1] * 7])


def test_a_reply_longer_than_the_cache_leaves_no_room_for_any_prompt():
    with pytest.raises(requests.PromptError, match="shorten it to 0 tokens or raise cache_size"):
        check([[1]], max_new_tokens=20)


def test_ids_beyond_int32_do_not_wrap_into_the_vocabulary():
    with pytest.raises(
        requests.PromptError, match=r"\[4294967297\], and the model has embeddings of 0 to 8 only"
    ):
        check([[2**32 + 1]])


def test_settings_must_be_one_for_each_prompt():
    params = [sampling_params.SamplingParams(max_new_tokens=1)] * 2
    with pytest.raises(requests.PromptError, match="3 prompts but 2 SamplingParams"):
        requests.check([[1]] * 3, params, cache_size=8, vocab_size=9)


def test_the_error_survives_pickling():
    error = requests.PromptError(["prompt 0 is empty"])
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_forbidden_tokens_must_exist_and_leave_something_to_draw():
    assert np.flatnonzero(requests.banned_mask([2, 4], 5)).tolist() == [2, 4]
    with pytest.raises(ValueError, match=r"\[5, -1\] are outside of the vocabulary of 5"):
        requests.banned_mask([5, 1, -1], 5)
    with pytest.raises(ValueError, match="covers the whole vocabulary"):
        requests.banned_mask([0, 1], 2)


def test_prompts_are_the_same_if_their_tokens_are():
    one, same, other = check([[5, 6], [5, 6], [5, 7]])
    assert one.identity == same.identity != other.identity


def test_old_and_new_keys_have_the_same_data_and_other_generators_are_refused():
    old, new = jax.random.PRNGKey(3), jax.random.key(3)
    np.testing.assert_array_equal(requests.key_words(old), requests.key_words(new))
    with pytest.raises(ValueError, match="the key is one of rbg, and the engine draws with"):
        requests.key_words(jax.random.key(3, impl="rbg"))


def test_every_invalid_setting_is_named():
    with pytest.raises(config.ConfigError) as error:
        sampling_params.SamplingParams(
            max_new_tokens=0,
            temperature=-1.0,
            top_k=0,
            top_p=0.0,
            min_p=2.0,
            repetition_penalty=0.0,
            stop_token_ids=(-3, *range(40)),
        )
    names = [problem.split()[0] for problem in error.value.problems]
    assert names == [
        "max_new_tokens",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "stop_token_ids",
        "stop_token_ids",
    ]


def test_not_a_number_is_no_temperature():
    with pytest.raises(config.ConfigError, match="temperature"):
        sampling_params.SamplingParams(max_new_tokens=1, temperature=float("nan"))


@pytest.mark.parametrize(
    ("cache_size", "expected"),
    [
        (10, (10,)),
        (16, (16,)),
        (100, (16, 32, 48, 64, 96, 100)),
        (256, (16, 32, 48, 64, 96, 128, 192, 256)),
    ],
)
def test_buckets_end_with_the_cache(cache_size, expected):
    assert plain_engine.buckets(cache_size) == expected
