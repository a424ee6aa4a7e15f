"""Tiny Qwen models of transformers, random in every weight, for parity tests."""

import jax
import jax.numpy as jnp
import torch
import transformers

from tests.models import hf_llama
from tunix.models import automodel, families, safetensors_loader, weights
from tunix.models.transformer import cache as cache_lib

CONFIGS = {
    "llama": transformers.LlamaConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "qwen3_moe": transformers.Qwen3MoeConfig,
}
QWEN3 = {"head_dim": 12}
MOE = QWEN3 | {
    "moe_intermediate_size": 24,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
}


def make(kind, **changes):
    """Return a float32 model whose every tensor is random, norms and biases included."""
    own = {"qwen3": QWEN3, "qwen3_moe": MOE}.get(kind, {})
    settings = hf_llama.SIZES | own | {"num_hidden_layers": 2} | changes
    theta = settings.pop("rope_theta")
    scaling = settings.pop("rope_scaling", None) or {"rope_type": "default"}
    config = CONFIGS[kind](rope_parameters={"rope_theta": theta, **scaling}, **settings)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # A router that tells experts apart; everything else as small as in a real model.
            scale = 1.0 if name.endswith("mlp.gate.weight") else 0.1
            parameter.normal_(1.0 if "norm" in name else 0.0, scale)
    return model


def saved(folder, kind, **changes):
    """Return the model after writing it to ``folder``."""
    hf = make(kind, **changes)
    hf.save_pretrained(folder)
    return hf


def load(folder, **options):
    """Return our model of what ``folder`` holds."""
    options = {"precision": "exact"} | options
    return automodel.AutoModel.from_pretrained(str(folder), **options)[0]


def reload(folder, family, config):
    """Return our model of the weights in ``folder``, built as ``config`` says."""
    source = safetensors_loader.SafetensorsDirectory(folder)
    family = families.FAMILIES[family]
    return weights.load_model(family.model_class, config, family.weights, source)


def cached_error(model, ids, step=2):
    """Return the largest difference of logits between cached decoding and the full forward."""
    ids = jnp.asarray(ids, jnp.int32)
    run = jax.jit(lambda model, ids, cache: model(ids, cache=cache))
    full, _ = run(model, ids, None)
    cache = cache_lib.init_cache(model.config, *ids.shape)
    errors = []
    for t in range(0, ids.shape[1], step):
        logits, cache = run(model, ids[:, t : t + step], cache)
        errors.append(float(jnp.abs(logits - full[:, t : t + step]).max()))
    return max(errors)
