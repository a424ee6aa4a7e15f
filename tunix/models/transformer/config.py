"""What a decoder is made of: architecture first, then how it runs.

A family never adds a branch here: it adds a field that names a published
mechanism, and a parity test that breaks when the field changes.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import jax.numpy as jnp

from tunix.ops import rope
from tunix.utils import config as config_lib

Remat = Literal["none", "nothing_saveable", "dots_saveable"]
REMAT_POLICIES: tuple[Remat, ...] = ("none", "nothing_saveable", "dots_saveable")
PRECISIONS = ("auto", "exact", "fast")
PARAM_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(config_lib.Config):
    """A pre-norm decoder with grouped-query attention and a gated MLP."""

    num_layers: int
    vocab_size: int
    embed_dim: int
    hidden_dim: int
    """Width of the MLP."""
    num_heads: int
    head_dim: int
    num_kv_heads: int
    rope_theta: float
    """Base of the rotary frequencies. No default: families differ, silently."""
    norm_eps: float
    rope_scaling: rope.RopeScaling | None = None
    weight_tying: bool = False
    """Whether the output matrix is the embedding matrix."""

    param_dtype: str = "float32"
    """Storage dtype of the weights; master weights stay float32."""
    precision: Literal["auto", "exact", "fast"] = "auto"
    """How matrices are multiplied, see :mod:`tunix.ops.dot`."""
    remat: Remat = "nothing_saveable"
    """What the backward pass may keep of a layer instead of computing it again."""
    scan_layers: bool = True
    """One stacked, scanned layer (compile time does not grow with depth) or a list of layers."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these sizes and choices."""
        yield from super().problems()
        sizes = ("num_layers", "vocab_size", "embed_dim", "hidden_dim")
        for name in (*sizes, "num_heads", "head_dim", "num_kv_heads"):
            if getattr(self, name) < 1:
                yield f"{name} must be at least 1, got {getattr(self, name)}"
        if self.num_kv_heads >= 1 and self.num_heads % self.num_kv_heads:
            yield (
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads "
                f"({self.num_kv_heads}): every key head serves the same number of query heads"
            )
        if self.head_dim % 2:
            yield f"head_dim must be even (rotary pairs), got {self.head_dim}"
        for name in ("rope_theta", "norm_eps"):
            if not getattr(self, name) > 0:
                yield f"{name} must be positive, got {getattr(self, name)}"
        allowed = {
            "param_dtype": PARAM_DTYPES,
            "precision": PRECISIONS,
            "remat": REMAT_POLICIES,
        }
        for name, values in allowed.items():
            found = getattr(self, name)
            if found not in values:
                hint = config_lib.did_you_mean(str(found), values)
                yield f"{name} must be one of {list(values)}, got {found!r}{hint}"

    @property
    def dtype(self) -> jnp.dtype:
        """Storage dtype of the weights as a JAX dtype."""
        return jnp.dtype(self.param_dtype)

    @property
    def query_scale(self) -> float:
        """What attention scores are multiplied with."""
        return self.head_dim**-0.5
