"""SmolLM2-135M-Instruct out of its GGUF file is the model transformers computes."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from tests.models import hf_llama
from tunix.generate import engine, sampling_params
from tunix.models import automodel, families, sources, weights
from tunix.models.llama3 import model as llama3
from tunix.tokenizers import tokenizer_adapter

pytestmark = pytest.mark.real_model

QUESTIONS = (
    "The capital of France is",
    "Which number is larger, 53 or 81? Answer with just the number.",
    "def fibonacci(n):",
    "Once upon a time, in a village by the sea,",
    "Water boils at a temperature of 100 degrees Celsius because",
)
NEW_TOKENS = 32


@pytest.fixture(scope="module")
def model(real_model_path):
    return automodel.AutoModel.from_pretrained(real_model_path, precision="exact")[0]


@pytest.fixture(scope="module")
def hf(model):
    """Return the same weights in transformers."""
    config = transformers.LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    config._attn_implementation = "eager"
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(config)
    theirs = theirs.to_empty(device="cpu").eval()
    theirs.model.rotary_emb.__init__(config)
    exported = weights.export_tensors(model, families.FAMILIES["llama3"].weights)
    state = {name: torch.tensor(np.ascontiguousarray(array)) for name, array in exported}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    theirs.load_state_dict(state, strict=True)
    return theirs


@pytest.fixture(scope="module")
def prompts(real_model_path):
    """Return token ids of questions as chat turns and as plain text."""
    tokenizer = tokenizer_adapter.load_tokenizer(real_model_path)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS[:2]]
    texts = [tokenizer.apply_chat_template(chat) for chat in chats]
    return [tokenizer.encode(text) for text in (*texts, *QUESTIONS[2:])]


def test_it_is_the_published_architecture(model):
    assert model.config == llama3.ModelConfig.smollm2_135m(precision="exact")


def test_logits_match_transformers_on_the_same_weights(model, hf, prompts):
    # Causal models: what stands behind a prompt changes nothing before it.
    ids = np.full((len(prompts), max(map(len, prompts))), 100)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    theirs = hf_llama.logits_of(hf, ids)
    ours, _ = model(jnp.asarray(ids, jnp.int32))
    # Logits reach 36 here and activations 10,000: the float32 of transformers itself is 6e-5
    # away from float64. The bound of the tiny models is held relative to the logits' size.
    assert np.abs(np.asarray(ours) - theirs).max() < 1e-5 * np.abs(theirs).max()


@pytest.mark.slow
def test_greedy_continuations_are_identical(model, hf, prompts):
    length = max(map(len, prompts)) + NEW_TOKENS
    sampler = engine.Engine(model, max_slots=len(prompts), cache_size=length)
    params = sampling_params.SamplingParams(max_new_tokens=NEW_TOKENS, temperature=0.0)
    ours = sampler.generate(prompts, params, key=jax.random.key(0))
    for prompt, completion in zip(prompts, ours, strict=True):
        theirs = greedy(hf, prompt)
        np.testing.assert_array_equal(completion.token_ids, theirs)
        assert completion.finish_reason == "length"


def greedy(hf, prompt):
    """Return the most likely continuation, token by token, without any machinery."""
    ids = list(prompt)
    cache = None
    new = ids
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            out = hf(torch.tensor([new]), past_key_values=cache, use_cache=True)
            cache, new = out.past_key_values, [int(out.logits[0, -1].argmax())]
            ids += new
    return ids[len(prompt) :]


def test_it_loads_in_a_few_seconds(real_model_path):
    start = time.process_time()
    automodel.AutoModel.from_pretrained(real_model_path)
    assert time.process_time() - start < 10.0
    assert sources.resolve(real_model_path).suffix == ".gguf"
