"""Tiny Llama models of transformers, random in every weight, for parity tests."""

import jax.numpy as jnp
import numpy as np
import torch
import transformers

SIZES = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 640,
    "tie_word_embeddings": False,
}

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # With the four frequencies of a tiny head: one is kept, one blended, two are stretched.
    "original_max_position_embeddings": 160,
}


def make(**changes):
    """Return a float32 model whose every tensor is random, norms included."""
    settings = SIZES | changes
    theta = settings.pop("rope_theta")
    scaling = settings.pop("rope_scaling", None) or {"rope_type": "default"}
    config = transformers.LlamaConfig(rope_parameters={"rope_theta": theta, **scaling}, **settings)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            parameter.normal_(centre, 0.1)
    return model


def tokens(vocab_size=SIZES["vocab_size"], shape=(2, 24), seed=0):
    return np.random.default_rng(seed).integers(1, vocab_size, shape)


def logits_of(hf, ids):
    with torch.no_grad():
        return hf(torch.tensor(ids)).logits.numpy()


def logits_error(model, hf, ids=None):
    """Return the largest difference between our logits and those of transformers."""
    ids = tokens() if ids is None else ids
    ours, _ = model(jnp.asarray(ids, jnp.int32))
    return float(np.abs(np.asarray(ours) - logits_of(hf, ids)).max())
