"""Gemma 3 270M from a Hugging Face directory is the model transformers computes.

The weights may not be redistributed, so these tests run where ``TUNIX_GEMMA3_270M`` names the
directory of ``google/gemma-3-270m``, or of a conversion of it.
"""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from tests.models import hf_gemma
from tunix.generate import engine, sampling_params
from tunix.models import automodel
from tunix.models.gemma3 import model as gemma3
from tunix.tokenizers import tokenizer_adapter

VARIABLE = "TUNIX_GEMMA3_270M"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        VARIABLE not in os.environ,
        reason=f"{VARIABLE} is not set; it names a Hugging Face directory of gemma-3-270m",
    ),
]

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a village by the sea,",
    "Water boils at a temperature of 100 degrees Celsius because",
    "Q: What is 7 * 2?\nA: 14\nQ: What is 3 * 3?\nA:",
)
NEW_TOKENS = 32


@pytest.fixture(scope="module")
def folder():
    return pathlib.Path(os.environ[VARIABLE])


@pytest.fixture(scope="module")
def model(folder):
    return automodel.AutoModel.from_pretrained(str(folder), precision="exact")[0]


@pytest.fixture(scope="module")
def hf(folder):
    return transformers.Gemma3ForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def prompts(folder):
    tokenizer = tokenizer_adapter.load_tokenizer(str(folder))
    return [tokenizer.encode(text) for text in PROMPTS]


def test_it_is_the_published_architecture(model):
    assert model.config == gemma3.ModelConfig.gemma3_270m(precision="exact")


def test_logits_match_transformers_on_the_same_weights(model, hf, prompts):
    # Causal models: what stands behind a prompt changes nothing before it.
    ids = np.full((len(prompts), max(map(len, prompts))), 100)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    expected = hf_gemma.logits_of(hf, ids)
    # Logits of tens: the bound of the tiny models is held relative to their size.
    assert hf_gemma.logits_error(model, expected, ids) < 1e-5 * np.abs(expected).max()


def test_logits_match_beyond_the_window(model, hf, folder):
    text = (pathlib.Path(__file__).parents[3] / "LICENSE").read_text()
    length = model.config.sliding_window_size + 40
    ids = np.array([tokenizer_adapter.load_tokenizer(str(folder)).encode(text)[:length]])
    assert ids.shape == (1, length)
    with torch.no_grad():
        expected = hf(torch.tensor(ids), logits_to_keep=4).logits.numpy()
    hidden, _ = model.hidden(jnp.asarray(ids, jnp.int32))
    ours = model.output_head().logits(hidden[:, -4:], precision="exact")
    assert np.abs(np.asarray(ours) - expected).max() < 1e-5 * np.abs(expected).max()


def test_greedy_continuations_are_identical(model, hf, prompts):
    length = max(map(len, prompts)) + NEW_TOKENS
    sampler = engine.Engine(model, max_slots=len(prompts), cache_size=length)
    params = sampling_params.SamplingParams(max_new_tokens=NEW_TOKENS, temperature=0.0)
    ours = sampler.generate(prompts, params, key=jax.random.key(0))
    for prompt, completion in zip(prompts, ours, strict=True):
        np.testing.assert_array_equal(completion.token_ids, greedy(hf, prompt))
        assert completion.finish_reason == "length"


def greedy(hf, prompt):
    """Return the most likely continuation, token by token, without any machinery."""
    ids, new, cache = [], list(prompt), None
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            out = hf(torch.tensor([new]), past_key_values=cache, use_cache=True)
            cache, new = out.past_key_values, [int(out.logits[0, -1].argmax())]
            ids += new
    return ids
