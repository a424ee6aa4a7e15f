"""Greedy replies follow the weights of a model that is trained, and hold no memory between."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tokenizers import tiny_tokenizer
from tunix.generate import greedy_replies, requests
from tunix.models import dummy_model_creator, lora, lora_config
from tunix.models.llama3 import model as llama3
from tunix.sft import neftune
from tunix.tokenizers import tokenizer_adapter

PROMPTS = [[4, 5, 6], [7, 8]]
NEW_TOKENS, LENGTH = 5, 64
VOCABULARY = tiny_tokenizer.make().get_vocab_size()


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_adapter.TokenizerAdapter(
        tiny_tokenizer.make(), special_ids=tokenizer_adapter.SpecialIds(eos=0, pad=0)
    )


def make_model(seed=0):
    config = llama3.ModelConfig(
        num_layers=2,
        vocab_size=VOCABULARY,
        embed_dim=16,
        hidden_dim=32,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        rope_theta=1e4,
        norm_eps=1e-5,
        precision="exact",
    )
    return dummy_model_creator.create_dummy_model(llama3.Llama3, config, random_seed=seed)


@nnx.jit
def logits_of(model, ids):
    """Logits of one row; causality hides what stands behind."""
    return model(ids[None], jnp.arange(len(ids))[None])[0][0]


def naive(model, prompt):
    """Greedy decoding without a cache: the whole text again for every token."""
    ids = list(prompt)
    for _ in range(NEW_TOKENS):
        padded = np.zeros(LENGTH, np.int32)
        padded[: len(ids)] = ids
        ids.append(int(jnp.argmax(logits_of(model, padded)[len(ids) - 1])))
        if ids[-1] == 0:
            break
    return ids[len(prompt) :]


def expected(tokenizer, model):
    found = [naive(model, prompt) for prompt in PROMPTS]
    return [
        (tokenizer.decode([i for i in ids if i != 0], skip_special_tokens=True), len(ids))
        for ids in found
    ]


def test_replies_are_those_of_the_weights_at_the_call(tokenizer):
    reply = greedy_replies.GreedyReplies(tokenizer, max_new_tokens=NEW_TOKENS, max_slots=2)
    model = make_model()
    first = expected(tokenizer, model)
    assert [(one.text, one.num_tokens) for one in reply(model, PROMPTS)] == first
    nnx.update(model, nnx.state(make_model(seed=1)))
    second = expected(tokenizer, model)
    assert second != first
    found = reply(model, PROMPTS)
    assert [(one.text, one.num_tokens) for one in found] == second
    assert [one.is_cut for one in found] == [True, True]
    assert not jax.tree.leaves(reply._engine.weights), "a copy of the weights is left"
    longer = reply(model, [PROMPTS[0] * 15])  # the cache grows with the prompts
    assert longer[0].num_tokens == len(naive(model, PROMPTS[0] * 15))


def test_noise_and_dropout_of_training_are_left_out(tokenizer):
    model = make_model()
    settings = {"rank": 2, "alpha": 64.0, "module_path": ".*q_einsum|.*down_proj"}
    lora.apply_lora(model, lora_config.LoraConfig(dropout=0.5, **settings), rngs=nnx.Rngs(1))
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.LoRAParam)):
        if path[-1] == "lora_b":
            leaf.set_value(jax.random.normal(jax.random.key(2), leaf.shape))
    neftune.add_noise(model, 50.0, seed=0)
    model.train()
    before = jax.tree.map(np.asarray, nnx.state(model, nnx.RngCount))
    reply = greedy_replies.GreedyReplies(tokenizer, max_new_tokens=NEW_TOKENS)
    found = [(one.text, one.num_tokens) for one in reply(model, PROMPTS)]
    after = jax.tree.map(np.asarray, nnx.state(model, nnx.RngCount))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    model.eval()
    assert found == expected(tokenizer, model)


def test_what_cannot_be_sampled_is_an_error(tokenizer):
    reply = greedy_replies.GreedyReplies(tokenizer, max_new_tokens=2)
    with pytest.raises(TypeError, match="tunix Decoder, got a Linear"):
        reply(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), PROMPTS)
    with pytest.raises(requests.PromptError, match="empty"):
        reply(make_model(), [[1], []])
