"""What a mixture of experts computes on one device and on meshes of four; run as a module."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.models.transformer import moe_test
from tunix.models.transformer import decoder as decoder_lib
from tunix.models.transformer import sharding

MESHES = {"ep": (4,), "fsdp,ep": (2, 2)}


def logits_and_gradient(model, tokens):
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state):
        def loss(state):
            logits, _ = nnx.merge(graphdef, state)(tokens)
            return (logits**2).mean(), logits

        (_, logits), gradient = jax.value_and_grad(loss, has_aux=True)(state)
        return logits, gradient

    return run(state)


def main():
    tokens = moe_test.tokens_of(4, 6)
    model = decoder_lib.Decoder(moe_test.TINY, rngs=nnx.Rngs(0))
    logits, gradient = logits_and_gradient(model, tokens)
    report = {}
    for axes, shape in MESHES.items():
        names = tuple(axes.split(","))
        mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(shape), names)
        sharded = decoder_lib.Decoder(moe_test.TINY, rngs=nnx.Rngs(0))
        sharding.shard_model(sharded, mesh)
        rows = jax.sharding.NamedSharding(
            mesh, jax.sharding.PartitionSpec("fsdp" if "fsdp" in names else None)
        )
        found, found_gradient = logits_and_gradient(sharded, jax.device_put(tokens, rows))
        w = sharded.layers.mlp.experts.up_proj.w[...]
        errors = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), found_gradient, gradient)
        report[axes] = {
            "logits": float(jnp.abs(found - logits).max()),
            "gradient": max(jax.tree.leaves(errors)),
            "share": w.addressable_shards[0].data.size / w.size,
            "gradient_share": found_gradient["layers"]["mlp"]["experts"]["up_proj"]["w"][...]
            .addressable_shards[0]
            .data.size
            / w.size,
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
