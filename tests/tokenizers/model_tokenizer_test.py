"""A tokenizer and an embedding of another size: ids without a row, and rows without a token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
import tokenizers
import transformers
from flax import nnx

from tests.tokenizers import tiny_tokenizer
from tunix.generate import engine, greedy_replies, sampler, sampling_params
from tunix.models.transformer import config as config_lib
from tunix.models.transformer import decoder as decoder_lib
from tunix.models.transformer import token_ids
from tunix.rl import common
from tunix.rl.rollout import base_rollout, vanilla_rollout
from tunix.tokenizers import model_tokenizer, tokenizer_adapter

LETTERS = "abcdefgh"
START, END, PAD = "<|im_start|>", "<|im_end|>", "<pad>"


def adapter(*special, template=tiny_tokenizer.CHATML, pad=None):
    """Return a tokenizer of letters (and of the line end) with special tokens behind them."""
    words = {text: i for i, text in enumerate([*LETTERS, "\n"])}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    raw.add_special_tokens(list(special))
    ids = tokenizer_adapter.SpecialIds(
        eos=raw.token_to_id(END), pad=None if pad is None else raw.token_to_id(pad)
    )
    return tokenizer_adapter.TokenizerAdapter(raw, special_ids=ids, chat_template=template)


CHAT = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]


@pytest.mark.parametrize(
    "encode",
    [
        pytest.param(lambda t: t.encode_text("ab<tool>"), id="text"),
        pytest.param(lambda t: t.encode_text("<tool>", continues=True), id="continued text"),
        pytest.param(lambda t: t.encode("ab<tool>"), id="native"),
        pytest.param(lambda t: t.encode_prompt("ab<tool>"), id="prompt"),
        pytest.param(lambda t: t.encode_prompt(CHAT[:1]), id="conversation"),
        pytest.param(lambda t: t.encode_chat(CHAT), id="finished conversation"),
        pytest.param(lambda t: t.apply_chat_template(CHAT, tokenize=True), id="rendered"),
    ],
)
def test_a_token_that_the_model_has_no_embedding_for_is_named(encode):
    inner = adapter(END, START, "<tool>")
    assert inner.special_tokens == {END: 9, START: 10, "<tool>": 11}
    assert encode(inner) == encode(model_tokenizer.ModelTokenizer(inner, 12))
    with pytest.raises(token_ids.TokenIdError) as error:
        encode(model_tokenizer.ModelTokenizer(inner, 10))
    assert "embeddings of 0 to 9 only; use the tokenizer that the model was made with" in str(
        error.value
    )
    assert "'<tool>' as token ids [11]" in str(error.value) or (
        "'<|im_start|>' as token ids [10]" in str(error.value)
    )


def test_what_the_model_knows_is_encoded_as_before():
    inner = adapter(END, START)
    bounded = model_tokenizer.ModelTokenizer(inner, 10)
    assert bounded.encode_text("abc") == inner.encode_text("abc") == [0, 1, 2]
    assert bounded.encode_ordinary(START) == inner.encode_ordinary(START)
    assert bounded.eos_ids() == inner.eos_ids() == (9,)


def test_a_text_could_not_end():
    with pytest.raises(token_ids.TokenIdError, match=r"'<\|im_end\|>' as token ids \[9\]"):
        model_tokenizer.ModelTokenizer(adapter(END, START), 9)


def test_padding_has_an_embedding():
    inner = adapter(END, PAD, pad=PAD)
    assert inner.pad_id() == 10
    assert model_tokenizer.ModelTokenizer(inner, 11).pad_id() == 10
    assert model_tokenizer.ModelTokenizer(inner, 10).pad_id() == 9


def test_rows_beyond_the_last_token_and_holes_are_unused():
    words = {"a": 0, "b": 1, "d": 3, END: 5}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
    found = tokenizer_adapter.TokenizerAdapter(
        raw, special_ids=tokenizer_adapter.SpecialIds(eos=5, more_eos=(7,))
    )
    # 7 has no token either, but the model's own settings say that it ends a reply.
    assert model_tokenizer.unused_ids(found, 9) == (2, 4, 6, 8)
    assert model_tokenizer.unused_ids(found, 2) == ()


def test_the_tokens_of_every_library_are_known(tmp_path):
    raw = adapter(END).tokenizer
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END)
    theirs.add_tokens(["<more>"])
    assert model_tokenizer.unused_ids(tokenizer_adapter.TokenizerAdapter(theirs), 13) == (11, 12)
    (tmp_path / "corpus.txt").write_text("\n".join(tiny_tokenizer.CORPUS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "tiny"),
        vocab_size=50,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tiny.model"))
    assert model_tokenizer.unused_ids(tokenizer_adapter.TokenizerAdapter(pieces), 52) == (50, 51)


class Duck:
    def encode(self, text):
        return [1]

    def decode(self, ids):
        return "x"

    def bos_id(self):
        return 0

    eos_id = pad_id = bos_id


def test_nothing_is_unused_where_the_tokenizer_does_not_tell_its_size():
    assert model_tokenizer.unused_ids(tokenizer_adapter.TokenizerAdapter(Duck()), 99) == ()


ROWS, TOKENS = 16, 10
CONFIG = config_lib.TransformerConfig(
    num_layers=1,
    vocab_size=ROWS,
    embed_dim=16,
    hidden_dim=24,
    num_heads=2,
    head_dim=8,
    num_kv_heads=1,
    rope_theta=1e4,
    norm_eps=1e-5,
    precision="exact",
)
PROMPT = [0, 3, 5]


@pytest.fixture(scope="module")
def model():
    """Return a model that gives more than half of its mass to rows that are no tokens."""
    found = decoder_lib.Decoder(CONFIG, rngs=nnx.Rngs(0))
    nnx.update(found, jax.tree.map(lambda x: 4 * x, nnx.state(found)))
    head = found.lm_head.w[...]
    found.lm_head.w[...] = head.at[TOKENS:].set(3 * head[:6])
    return found


@jax.jit
def forward(model, tokens):
    return model(tokens)[0]


def logps_of(model, ids):
    """Return log-probabilities over all rows, one step after the other."""
    padded = np.zeros((1, 16), np.int32)  # causality hides what is behind
    padded[0, : len(ids)] = ids
    logits = np.asarray(forward(model, padded)[0, : len(ids)], np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


TOKENIZER = adapter(END)


def rollout(model, **settings):
    made = vanilla_rollout.VanillaRollout(
        model=model, tokenizer=TOKENIZER, cache_size=32, max_slots=4
    )
    config = base_rollout.RolloutConfig(max_tokens_to_generate=8, max_prompt_length=8, **settings)
    return made.generate([PROMPT], config, key=jax.random.key(1), num_samples=12)


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 1.0}, {"temperature": 1.0, "top_k": 4}, {"temperature": 1.0, "top_p": 0.9}],
    ids=["plain", "top-k", "top-p"],
)
def test_rollouts_draw_tokens_and_their_log_probabilities_are_the_policys(model, settings):
    lost = 0.0
    for one in rollout(model, **settings):
        ids = [*PROMPT, *one.token_ids.tolist()]
        logps = logps_of(model, ids)[len(PROMPT) - 1 : -1]
        assert one.token_ids.max() < TOKENS
        steps = np.arange(len(one.token_ids))
        # Of the policy: over all rows, as a trainer computes them, and transformers.
        np.testing.assert_allclose(one.logps, logps[steps, one.token_ids], atol=1e-5)
        kept = np.exp(logps[:, :TOKENS]).sum(axis=1)
        lost = max(lost, float(1 - kept.min()))
        if len(settings) == 1:  # of what was drawn from: the tokens alone
            want = logps[steps, one.token_ids] - np.log(kept)
            np.testing.assert_allclose(one.sampled_logps, want, atol=1e-5)
    assert lost > 0.5


def test_the_trainers_log_probabilities_are_those_of_the_sampler(model):
    (one, *_) = rollout(model, temperature=1.0)
    ids = np.asarray([*PROMPT, *one.token_ids.tolist()], np.int32)
    count = len(one.token_ids)
    source = np.arange(len(PROMPT) - 1, len(ids) - 1, dtype=np.int32)
    batch = common.PolicyBatch(
        tokens=ids[None],
        positions=np.arange(len(ids), dtype=np.int32)[None],
        segment_ids=np.ones((1, len(ids)), np.int32),
        prefix_ids=np.ones((1, len(ids)), np.int32),
        source=source,
        targets=ids[source + 1],
        sequence=np.zeros(count, np.int32),
        mask=np.ones(count, bool),
        num_targets=np.int32(count),
        weights=np.ones(count, np.float32),
        weight=np.float32(count),
        advantages=np.ones(count, np.float32),
        sampler_logps=one.logps,
        old_logps=one.logps,
        on_policy=np.bool_(True),
        temperature=np.float32(1.0),
    )
    found = common.policy_logps(model, jax.tree.map(jnp.asarray, batch)).logps
    np.testing.assert_allclose(found, one.logps, atol=1e-5)


def test_no_sampler_draws_a_row_that_is_no_token(model):
    plain = engine.Engine(model, max_slots=2, cache_size=32)
    params = sampling_params.SamplingParams(max_new_tokens=8, temperature=0.0)
    (free,) = plain.generate([PROMPT], params, key=jax.random.key(0))
    assert free.token_ids.max() >= TOKENS
    (reply,) = greedy_replies.GreedyReplies(TOKENIZER, max_new_tokens=8)(model, [PROMPT])
    # Every token but the one that ends the reply has its letter.
    assert len(reply.text.split()) == reply.num_tokens - (not reply.is_cut) > 2
    cache = sampler.CacheConfig(32, 1, 1, 8)
    text = sampler.Sampler(model, TOKENIZER, cache)
    greedy = text("adf", 8)
    drawn = text(["adf"] * 8, 8, temperature=1.0, seed=0, forbidden_tokens=[1])
    assert max(ids.max() for ids in [*greedy.tokens, *drawn.tokens]) < TOKENS
    assert all(1 not in ids for ids in drawn.tokens)


def test_a_module_of_ones_own_draws_tokens_too(model):
    class Foreign(nnx.Module):
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, tokens, positions, cache, attention_mask):
            return self.inner(tokens, positions, cache, attention_mask)

    text = sampler.Sampler(Foreign(model), TOKENIZER, sampler.CacheConfig(16, 1, 1, 8))
    assert text("adf", 6).tokens[0].max() < TOKENS
