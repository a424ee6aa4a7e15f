"""Tiny Gemma models of transformers, random in every weight, for parity tests."""

import jax.numpy as jnp
import numpy as np
import torch
import transformers

SIZES = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "num_hidden_layers": 3,
    "max_position_embeddings": 640,
}

GEMMA2 = {
    "sliding_window": 5,
    # Not the head's width, and caps that scores and logits of such models reach.
    "query_pre_attn_scalar": 20,
    "attn_logit_softcapping": 0.5,
    "final_logit_softcapping": 0.7,
}

GEMMA3 = {
    "sliding_window": 5,
    "query_pre_attn_scalar": 20,
    # Two local layers per global one do not divide four layers.
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention"] * 2 + ["full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
    },
}

LENGTH = 24
"""Tokens of a row; four windows and more."""


def gemma(**changes):
    """Return a Gemma 1 with its activation spelt as the first files did."""
    settings = SIZES | {"hidden_act": "gelu"} | changes
    return _randomised(transformers.GemmaForCausalLM, transformers.GemmaConfig(**settings))


def gemma2(**changes):
    config = transformers.Gemma2Config(**SIZES | GEMMA2 | changes)
    return _randomised(transformers.Gemma2ForCausalLM, config)


def gemma3(**changes):
    config = transformers.Gemma3TextConfig(**SIZES | GEMMA3 | changes)
    return _randomised(transformers.Gemma3ForCausalLM, config)


def gemma3_with_images(**changes):
    """Return a Gemma 3 with a tiny image tower."""
    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
        "vision_use_head": False,
    }
    config = transformers.Gemma3Config(
        text_config=SIZES | GEMMA3 | changes,
        vision_config=vision,
        mm_tokens_per_image=4,
        boi_token_index=64,
        eoi_token_index=65,
        image_token_index=66,
    )
    return _randomised(transformers.Gemma3ForConditionalGeneration, config)


def _randomised(model_class, config):
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms are stored minus one, so their centre is zero as well.
            parameter.normal_(0.0, 0.1)
    return model


def tokens(shape=(2, LENGTH), seed=0):
    return np.random.default_rng(seed).integers(1, 64, shape)


def logits_of(hf, ids):
    with torch.no_grad():
        return hf(torch.tensor(ids)).logits.numpy()


def logits_error(model, expected, ids):
    """Return the largest difference between our logits and the ``expected`` ones."""
    ours, _ = model(jnp.asarray(ids, jnp.int32))
    return float(np.abs(np.asarray(ours) - expected).max())
