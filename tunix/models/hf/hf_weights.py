"""Rows of weight tables that families share: the names that Llama gave its tensors.

A row whose parameter a model does not have (a bias, say) is skipped, so one row serves
models with and without it. Matrices are stored ``[out, in]`` in files and ``[in, out]`` here.
"""

from collections.abc import Sequence

from tunix.models.weight_table import Weight

TRANSPOSED = "o i -> i o"

MODEL: Sequence[Weight] = (
    Weight("model.embed_tokens.weight", "embed_tokens.w"),
    Weight("model.norm.weight", "norm.scale"),
    Weight("lm_head.weight", "lm_head.w", copy_of="embed_tokens.w"),
    # Files of old transformers hold the rotary frequencies too.
    Weight("model.layers.{i}.self_attn.rotary_emb.inv_freq", None),
)
"""What is there once, and what files hold besides."""


def scales(*names: str) -> tuple[Weight, ...]:
    """Return the rows of norms of every layer."""
    return tuple(
        Weight(f"model.layers.{{i}}.{name}.weight", f"layers.{{i}}.{name}.scale") for name in names
    )


def projections(*names: str) -> tuple[Weight, ...]:
    """Return the rows of matrices of every layer and of their biases."""
    return tuple(
        row
        for name in names
        for row in (
            Weight(f"model.layers.{{i}}.{name}.weight", f"layers.{{i}}.{name}.w", TRANSPOSED),
            Weight(f"model.layers.{{i}}.{name}.bias", f"layers.{{i}}.{name}.b"),
        )
    )


ATTENTION = projections(*(f"self_attn.{part}_proj" for part in "qkvo"))
MLP = projections(*(f"mlp.{part}_proj" for part in ("gate", "up", "down")))
PRE_NORMS = scales("input_layernorm", "post_attention_layernorm")
QK_NORMS = scales("self_attn.q_norm", "self_attn.k_norm")

EXPERTS: Sequence[Weight] = (
    Weight("model.layers.{i}.mlp.gate.weight", "layers.{i}.mlp.gate.w", TRANSPOSED),
    *(
        Weight(
            f"model.layers.{{i}}.mlp.experts.{{e}}.{part}_proj.weight",
            f"layers.{{i}}.mlp.experts.{part}_proj.w",
            TRANSPOSED,
        )
        for part in ("gate", "up", "down")
    ),
)
"""A router and its experts, one by one."""
