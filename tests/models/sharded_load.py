"""Loads a model onto a mesh of 8 virtual devices, computes with it and saves it.

Run as ``python -m tests.models.sharded_load SOURCE OUT``; a process of its own, because the number
of devices is fixed when JAX starts.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.models import hf_llama
from tunix.models import automodel, lora
from tunix.models.hf import hf_export


def adapted(model):
    lora.apply_lora(
        model, lora.LoraConfig(rank=2, alpha=4.0, module_path="q_proj"), rngs=nnx.Rngs(0)
    )
    for _, module in lora.iter_projections(model):
        if module.adapter is not None:
            module.lora_b[...] = jnp.ones_like(module.lora_b[...])
    return model


def logits_of(model, ids):
    return np.asarray(nnx.jit(lambda m, x: m(x)[0])(model, jnp.asarray(ids, jnp.int32)))


def main(source, out):
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"))
    model, _ = automodel.AutoModel.from_pretrained(source, mesh, precision="exact")
    leaves = jax.tree.leaves(nnx.state(model))
    logits = logits_of(model, hf_llama.tokens(64, (8, 16)))
    np.save(pathlib.Path(out) / "logits.npy", logits)
    hf_export.save_merged(adapted(model), pathlib.Path(out) / "merged", source=source)
    split = [leaf for leaf in leaves if not leaf.sharding.is_fully_replicated]
    print(json.dumps({"devices": len(jax.devices()), "parameters_split": len(split)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
