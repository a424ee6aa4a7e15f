"""Text sampling: the reference's call form, and what it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tokenizers import tiny_tokenizer
from tunix.generate import requests, sampler, sampling_params, weight_sync
from tunix.models.transformer import config as config_lib
from tunix.models.transformer import decoder as decoder_lib
from tunix.tokenizers import tokenizer_adapter
from tunix.utils import config as utils_config

_BPE = tiny_tokenizer.make()
TOKENIZER = tokenizer_adapter.TokenizerAdapter(
    _BPE, special_ids=tokenizer_adapter.SpecialIds(eos=_BPE.token_to_id("<|im_end|>"))
)
VOCAB = _BPE.get_vocab_size()
CONFIG = config_lib.TransformerConfig(
    num_layers=2,
    vocab_size=VOCAB,
    embed_dim=16,
    hidden_dim=24,
    num_heads=2,
    head_dim=8,
    num_kv_heads=1,
    rope_theta=1e4,
    norm_eps=1e-5,
    precision="exact",
)
CACHE = sampler.CacheConfig(64, 2, 1, 8)
PROMPTS = ["the quick brown fox", "lazy", "how are you?"]


class Foreign(nnx.Module):
    """The same function, but only its plain call."""

    def __init__(self, model):
        self.model = model

    def __call__(self, tokens, positions, cache, attention_mask):
        return self.model(tokens, positions, cache, attention_mask)


def build(seed=0):
    model = decoder_lib.Decoder(CONFIG, rngs=nnx.Rngs(seed))
    # Larger weights, so that distributions are not flat and argmax is not a coin toss.
    nnx.update(model, jax.tree.map(lambda x: 4 * x, nnx.state(model)))
    return model


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def text_sampler(model):
    return sampler.Sampler(model, TOKENIZER, CACHE, max_slots=2)


def test_greedy_tokens_are_the_argmax_of_the_full_forward(model, text_sampler):
    output = text_sampler(PROMPTS, 5, eos_tokens=[])
    for prompt, tokens in zip(PROMPTS, output.tokens, strict=True):
        ids = text_sampler.tokenize(prompt).tolist()
        for token in tokens:
            logits, _ = model(jnp.asarray([ids]))
            assert token == int(logits[0, -1].argmax())
            ids.append(int(token))


def test_log_probabilities_and_logits_belong_to_the_tokens(text_sampler):
    output = text_sampler(PROMPTS, 4, temperature=0.7, seed=3, return_logits=True, eos_tokens=[])
    for tokens, logps, logits in zip(output.tokens, output.logprobs, output.logits, strict=True):
        expected = jax.nn.log_softmax(logits / 0.7)[np.arange(len(tokens)), tokens]
        np.testing.assert_allclose(logps, expected, atol=1e-5)


def test_a_temperature_alone_samples(text_sampler):
    draws = {tuple(text_sampler("lazy", 6, temperature=2.0, seed=s).tokens[0]) for s in range(4)}
    assert len(draws) > 1


def test_the_same_seed_gives_the_same_text_and_no_seed_gives_another(text_sampler):
    settings = {"max_generation_steps": 8, "temperature": 2.0, "eos_tokens": []}
    first = text_sampler(PROMPTS, seed=1, **settings)
    assert text_sampler(PROMPTS, seed=1, **settings).text == first.text
    assert text_sampler(PROMPTS, **settings).text != text_sampler(PROMPTS, **settings).text


def test_other_stop_tokens_later_are_honoured(text_sampler):
    free = text_sampler("lazy", 6, eos_tokens=[]).tokens[0]
    stop = int(free[2])
    cut = text_sampler("lazy", 6, eos_tokens=[stop])
    end = free.tolist().index(stop)
    np.testing.assert_array_equal(cut.tokens[0], free[: end + 1])
    assert cut.text[0] == text_sampler.tokenizer.decode(free[:end].tolist())


def test_forbidden_tokens_never_come(text_sampler):
    favourite = int(text_sampler("lazy", 1, eos_tokens=[]).tokens[0][0])
    output = text_sampler("lazy", 1, eos_tokens=[], forbidden_tokens=[favourite])
    assert output.tokens[0][0] != favourite


def test_echo_and_padding_lay_the_tokens_out(text_sampler):
    ids = text_sampler.tokenize("lazy")
    plain = text_sampler("lazy", 3, eos_tokens=[])
    output = text_sampler("lazy", 3, max_prompt_length=9, echo=True, pad_output=True, eos_tokens=[])
    assert output.tokens.shape == (1, 12)
    np.testing.assert_array_equal(output.tokens[0, : len(ids) + 3], [*ids, *plain.tokens[0]])
    np.testing.assert_array_equal(output.padded_prompt_tokens[0, -len(ids) :], ids)
    assert output.text[0].startswith("lazy")


def test_a_foreign_module_gives_the_same_completions(model, text_sampler):
    foreign = sampler.Sampler(Foreign(model), TOKENIZER, CACHE)
    for settings in ({}, {"temperature": 0.9, "top_p": 0.8, "top_k": 20, "seed": 5}):
        ours = text_sampler(PROMPTS, 6, **settings)
        theirs = foreign(PROMPTS, 6, **settings)
        assert theirs.text == ours.text
        for a, b in zip(theirs.logprobs, ours.logprobs, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_assigned_weights_are_sampled_from(text_sampler):
    ours = sampler.Sampler(build(seed=1), TOKENIZER, CACHE)
    before = ours(PROMPTS, 6).text
    ours.transformer_state = text_sampler.transformer_state
    assert ours(PROMPTS, 6).text == text_sampler(PROMPTS, 6).text != before


def test_weights_that_do_not_fit_are_listed(text_sampler):
    smaller = decoder_lib.Decoder(
        config_lib.TransformerConfig(
            **{**vars(CONFIG), "hidden_dim": 20},
        ),
        rngs=nnx.Rngs(0),
    )
    with pytest.raises(weight_sync.WeightMismatchError, match=r"mlp\.down_proj\.w has shape"):
        text_sampler.transformer_state = nnx.state(smaller)


def test_a_prompt_that_is_too_long_is_named(text_sampler):
    with pytest.raises(requests.PromptError) as error:
        text_sampler(["lazy", "the quick brown fox jumps"], 4, max_prompt_length=3)
    assert "prompt 1 has" in str(error.value)
    with pytest.raises(requests.PromptError, match="exceeds the cache of 64"):
        text_sampler("lazy", 64)


def test_a_cache_of_another_model_is_refused(model):
    with pytest.raises(utils_config.ConfigError) as error:
        sampler.Sampler(model, TOKENIZER, sampler.CacheConfig(64, 3, 2, 8))
    assert "num_layers is 3, but the model's is 2" in str(error.value)
    assert "num_kv_heads is 2" in str(error.value)


@pytest.mark.parametrize(
    "sizes", [{}, {"num_layers": 2}, {"num_kv_heads": 1, "head_dim": 8}], ids=["none", "one", "two"]
)
def test_what_the_model_knows_of_the_cache_may_be_left_out(sizes, model):
    made = sampler.Sampler(model, TOKENIZER, sampler.CacheConfig(cache_size=64, **sizes))
    assert made.cache_config == CACHE
    with pytest.raises(utils_config.ConfigError, match=r"head_dim is 4, but the model's is 8"):
        sampler.Sampler(model, TOKENIZER, sampler.CacheConfig(64, head_dim=4))
    with pytest.raises(utils_config.ConfigError, match="cache_size must be at least 1"):
        sampler.Sampler(model, TOKENIZER, sampler.CacheConfig(cache_size=0))


def test_a_module_of_ones_own_needs_no_more_than_the_size(model):
    text = sampler.Sampler(Foreign(model), TOKENIZER, sampler.CacheConfig(cache_size=32))
    assert len(text("lazy", 2).tokens[0]) <= 2


def test_token_level_sampling_returns_groups_in_order(text_sampler):
    prompts = [text_sampler.tokenize(p).tolist() for p in PROMPTS]
    params = sampling_params.SamplingParams(max_new_tokens=4, temperature=1.0)
    completions = text_sampler.generate_tokens(
        prompts, params, key=jax.random.key(0), num_samples=3
    )
    assert len(completions) == 9
    assert len({tuple(c.token_ids) for c in completions[:3]}) > 1
