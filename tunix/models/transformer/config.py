"""What a decoder is made of: architecture first, then how it runs.

A family never adds a branch here: it adds a field that names a published
mechanism, and a parity test that breaks when the field changes.
"""

import dataclasses
import enum
import itertools
from collections.abc import Iterator
from typing import Literal

import jax.numpy as jnp

from tunix.ops import rope
from tunix.utils import config as config_lib

Activation = Literal["silu", "gelu", "gelu_tanh"]
ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu", "gelu_tanh")
AttentionType = Literal["global", "local"]
ATTENTION_TYPES: tuple[AttentionType, ...] = ("global", "local")
Remat = Literal["none", "nothing_saveable", "dots_saveable"]
REMAT_POLICIES: tuple[Remat, ...] = ("none", "nothing_saveable", "dots_saveable")


class RematConfig(enum.StrEnum):
    """Values of ``remat`` by the names that google-tunix has for them."""

    NONE = "none"
    BLOCK = "nothing_saveable"


PRECISIONS = ("auto", "exact", "fast")
PARAM_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(config_lib.Config):
    """A pre-norm decoder with grouped-query attention and a gated MLP or experts."""

    num_layers: int
    vocab_size: int
    embed_dim: int
    hidden_dim: int
    """Width of the MLP, of each expert where there are experts."""
    num_heads: int
    head_dim: int
    num_kv_heads: int
    rope_theta: float
    """Base of the rotary frequencies. No default: families differ, silently."""
    norm_eps: float
    rope_scaling: rope.RopeScaling | None = None
    weight_tying: bool = False
    """Whether the output matrix is the embedding matrix."""
    activation: Activation = "silu"
    """What the gate of the MLP goes through."""
    scale_embeddings: bool = False
    """Whether embeddings are multiplied with the square root of their width (Gemma)."""
    norm_scale_offset: float = 0.0
    """Added to every stored norm scale: 1 where files hold the scale minus one (Gemma)."""
    sandwich_norms: bool = False
    """Whether the output of attention and MLP is normalised too (Gemma 2)."""
    qk_norm: bool = False
    """Whether every head of queries and keys is normalised before it is rotated (Qwen 3)."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    query_pre_attn_scalar: float | None = None
    """Scores are divided by its square root; by default that of ``head_dim``."""
    attn_logit_softcap: float | None = None
    """Bound ``c`` of attention scores, as ``c * tanh(score / c)`` (Gemma 2)."""
    final_logit_softcap: float | None = None
    """Bound of the logits."""
    attention_types: tuple[AttentionType, ...] = ("global",)
    """What the layers attend to, first layer first, repeated to the number of layers."""
    sliding_window_size: int | None = None
    """How many latest tokens a local layer sees, itself included."""
    local_rope_theta: float | None = None
    """Base of the unscaled rotary frequencies of local layers; by default those of all layers."""
    num_experts: int | None = None
    """Experts of every MLP; ``None`` for one dense MLP."""
    num_experts_per_tok: int | None = None
    """How many experts a token is routed to."""
    norm_topk_prob: bool = True
    """Whether the chosen experts' probabilities are rescaled to sum to one."""

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
        optional = ("query_pre_attn_scalar", "attn_logit_softcap", "final_logit_softcap")
        for name in ("rope_theta", "norm_eps", *optional, "local_rope_theta"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                yield f"{name} must be positive, got {value}"
        yield from self._attention_problems()
        yield from self._expert_problems()
        allowed = {
            "activation": ACTIVATIONS,
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
        scalar = self.query_pre_attn_scalar
        return (self.head_dim if scalar is None else scalar) ** -0.5

    @property
    def is_local(self) -> tuple[bool, ...]:
        """For every layer, whether it attends to a sliding window."""
        kinds = itertools.islice(itertools.cycle(self.attention_types), self.num_layers)
        return tuple(kind == "local" for kind in kinds)

    def _attention_problems(self) -> Iterator[str]:
        for kind in self.attention_types:
            if kind not in ATTENTION_TYPES:
                hint = config_lib.did_you_mean(str(kind), ATTENTION_TYPES)
                yield f"attention_types must be of {list(ATTENTION_TYPES)}, got {kind!r}{hint}"
        if not 1 <= len(self.attention_types) <= max(1, self.num_layers):
            yield (
                f"attention_types must name 1 to num_layers ({self.num_layers}) layers, got "
                f"{len(self.attention_types)}"
            )
        window = self.sliding_window_size
        if ("local" in self.attention_types) != (window is not None):
            yield (
                "sliding_window_size goes with local layers: set it exactly if attention_types has "
                f"'local', got {window} with {list(self.attention_types)}"
            )
        if window is not None and window < 1:
            yield f"sliding_window_size must be at least 1, got {window}"
        if self.local_rope_theta is not None and "local" not in self.attention_types:
            yield "local_rope_theta is only read by local layers; attention_types has none"

    def _expert_problems(self) -> Iterator[str]:
        experts, used = self.num_experts, self.num_experts_per_tok
        if (experts is None) != (used is None):
            yield (f"num_experts and num_experts_per_tok go together, got {experts} and {used}")
        elif experts is not None and used is not None and not 1 <= used <= experts:
            yield f"num_experts_per_tok must be 1 to num_experts ({experts}), got {used}"
        if experts is not None and self.mlp_bias:
            yield "mlp_bias is not supported for experts; set it to false"
