"""A mixture of experts in place of the MLP: each token goes through the few it is routed to.

Shazeer et al., 2017 (arXiv:1701.06538), as Qwen 3 computes it: softmax over all experts first,
the best few after. No token is dropped and no expert sees a token that is not its own.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from tunix.models.transformer import activation, projection
from tunix.models.transformer import adapter as adapter_lib
from tunix.models.transformer import config as config_lib
from tunix.ops import dot as dot_lib
from tunix.ops import ragged


class Router(nnx.Module):
    """Scores every expert for every token.

    Not a :class:`Projection`, so that neither adapters nor quantisation touch it: a small error
    here sends a token elsewhere.
    """

    def __init__(self, config: config_lib.TransformerConfig, *, rngs: nnx.Rngs):
        shape = (config.embed_dim, config.num_experts or 1)
        w = projection.INIT_STD * jax.random.normal(rngs.params(), shape, jnp.float32)
        self.w = nnx.Param(w.astype(config.dtype), logical_axes=("embed", None))
        self.num_chosen = config.num_experts_per_tok or 1
        self.normalise = config.norm_topk_prob
        self.precision: dot_lib.Precision = dot_lib.resolve_precision(config.precision)

    def __call__(
        self, x: Float[Array, "M D"]
    ) -> tuple[Float[Array, "M chosen"], Int[Array, "M chosen"]]:
        """Return weight and index of the experts of every token, best first."""
        scores = dot_lib.dot(x, self.w[...], precision=self.precision)
        weights, experts = jax.lax.top_k(jax.nn.softmax(scores, axis=-1), self.num_chosen)
        if self.normalise:
            weights = weights / weights.sum(axis=-1, keepdims=True)
        return weights, experts


class ExpertMatrices(nnx.Module):
    """The same matrix of every expert, ``[experts, in, out]``."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        axes: tuple[str, str],
        config: config_lib.TransformerConfig,
        *,
        rngs: nnx.Rngs,
    ):
        shape = (config.num_experts or 1, in_features, out_features)
        w = projection.INIT_STD * jax.random.normal(rngs.params(), shape, jnp.float32)
        self.w = nnx.Param(w.astype(config.dtype), logical_axes=("experts", *axes))
        self.precision: dot_lib.Precision = dot_lib.resolve_precision(config.precision)

    def __call__(
        self, x: Float[Array, "M i"], group_sizes: Int[Array, " E"]
    ) -> Float[Array, "M o"]:
        """Return the product of rows that are sorted by expert, in float32."""
        return ragged.ragged_dot(x, self.w[...], group_sizes, precision=self.precision)


class Experts(nnx.Module):
    """Gated feed-forward networks side by side."""

    def __init__(self, config: config_lib.TransformerConfig, *, rngs: nnx.Rngs):
        d, f = config.embed_dim, config.hidden_dim
        self.gate_proj = ExpertMatrices(d, f, ("embed", "mlp"), config, rngs=rngs)
        self.up_proj = ExpertMatrices(d, f, ("embed", "mlp"), config, rngs=rngs)
        self.down_proj = ExpertMatrices(f, d, ("mlp", "embed"), config, rngs=rngs)
        self.activation: config_lib.Activation = config.activation

    def __call__(
        self, x: Float[Array, "M D"], group_sizes: Int[Array, " E"]
    ) -> Float[Array, "M D"]:
        """Return what its expert makes of every row."""
        gate = activation.activate(self.gate_proj(x, group_sizes), self.activation)
        return self.down_proj(gate * self.up_proj(x, group_sizes), group_sizes)


class MoE(nnx.Module):
    """A router and its experts."""

    def __init__(self, config: config_lib.TransformerConfig, *, rngs: nnx.Rngs):
        self.gate = Router(config, rngs=rngs)
        self.experts = Experts(config, rngs=rngs)
        self.num_experts = config.num_experts or 1

    def __call__(
        self, x: Float[Array, "B T D"], *, adapters: adapter_lib.AdapterUse
    ) -> Float[Array, "B T D"]:
        """Return for every token the weighted sum of what its experts make of it.

        Called as the MLP is; experts have no adapters, so ``adapters`` changes nothing.
        """
        del adapters
        tokens = x.reshape(-1, x.shape[-1])
        weights, experts = self.gate(tokens)
        order = jnp.argsort(experts.reshape(-1), stable=True)
        group_sizes = jnp.bincount(experts.reshape(-1), length=self.num_experts)
        rows = permuted(jnp.repeat(tokens, experts.shape[1], axis=0), order)
        outputs = permuted(self.experts(rows, group_sizes), jnp.argsort(order))
        outputs = outputs.reshape(*experts.shape, -1) * weights[:, :, None]
        return outputs.sum(axis=1).reshape(x.shape)


@jax.custom_vjp
def permuted(x: Float[Array, "M D"], order: Int[Array, " M"]) -> Float[Array, "M D"]:
    """Return ``x[order]`` of a permutation; its gradient is a gather, too, and no slow scatter."""
    return x[order]


def _permuted_fwd(x, order):
    return x[order], order


def _permuted_bwd(order, g):
    return g[jnp.argsort(order)], None


permuted.defvjp(_permuted_fwd, _permuted_bwd)
