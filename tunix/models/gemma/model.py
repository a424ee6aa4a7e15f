"""Gemma 1, 1.1 and 2 as data.

Gemma differs from Llama in: embeddings scaled by the square root of their width, norm
scales stored minus one, GELU in the gate, a tied head, heads wider than their share of the
model. Gemma 2 (arXiv:2408.00118) adds norms behind attention and MLP, soft caps of scores
and logits, and a sliding window in every other layer, the first one included.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from tunix.models.transformer import config as config_lib
from tunix.models.transformer import decoder
from tunix.utils import reference_names

PATTERN: tuple[config_lib.AttentionType, ...] = ("local", "global")
"""What the layers of Gemma 2 attend to."""

MECHANISMS: Mapping[str, Any] = {"scale_embeddings": True, "norm_scale_offset": 1.0}
"""What no file of the family says because all its models do it."""

RematConfig = config_lib.RematConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(config_lib.TransformerConfig):
    """A decoder of Gemma's kind; a preset takes any field as a keyword to change it."""

    @classmethod
    def gemma_2b(cls, **changes: Any) -> Self:
        """Gemma 2B; one key head for all."""
        size = {"num_layers": 18, "embed_dim": 2048, "hidden_dim": 16_384}
        return cls(**_gemma(**size | {"num_heads": 8, "num_kv_heads": 1} | changes))

    @classmethod
    def gemma_2b_it(cls, **changes: Any) -> Self:
        """Gemma 2B, instruction-tuned."""
        return cls.gemma_2b(**changes)

    @classmethod
    def gemma1p1_2b_it(cls, **changes: Any) -> Self:
        """Gemma 1.1 2B, published instruction-tuned only; the shape of Gemma 2B."""
        return cls.gemma_2b(**changes)

    @classmethod
    def gemma_7b(cls, **changes: Any) -> Self:
        """Gemma 7B; one key head per query head."""
        size = {"num_layers": 28, "embed_dim": 3072, "hidden_dim": 24_576}
        return cls(**_gemma(**size | {"num_heads": 16, "num_kv_heads": 16} | changes))

    @classmethod
    def gemma_7b_it(cls, **changes: Any) -> Self:
        """Gemma 7B, instruction-tuned."""
        return cls.gemma_7b(**changes)

    @classmethod
    def gemma1p1_7b_it(cls, **changes: Any) -> Self:
        """Gemma 1.1 7B, published instruction-tuned only; the shape of Gemma 7B."""
        return cls.gemma_7b(**changes)

    @classmethod
    def gemma2_2b(cls, **changes: Any) -> Self:
        """Gemma 2 2B."""
        size = {"num_layers": 26, "embed_dim": 2304, "hidden_dim": 9216}
        return cls(**_gemma2(**size | {"num_heads": 8, "num_kv_heads": 4} | changes))

    @classmethod
    def gemma2_2b_it(cls, **changes: Any) -> Self:
        """Gemma 2 2B, instruction-tuned."""
        return cls.gemma2_2b(**changes)

    @classmethod
    def gemma2_9b(cls, **changes: Any) -> Self:
        """Gemma 2 9B."""
        size = {"num_layers": 42, "embed_dim": 3584, "hidden_dim": 14_336}
        return cls(**_gemma2(**size | {"num_heads": 16, "num_kv_heads": 8} | changes))

    @classmethod
    def gemma2_9b_it(cls, **changes: Any) -> Self:
        """Gemma 2 9B, instruction-tuned."""
        return cls.gemma2_9b(**changes)

    @classmethod
    def gemma2_27b(cls, **changes: Any) -> Self:
        """Gemma 2 27B; scores are scaled by the model's width per head, not by the head's."""
        size = {"num_layers": 46, "embed_dim": 4608, "hidden_dim": 36_864}
        heads = {"num_heads": 32, "num_kv_heads": 16, "head_dim": 128}
        return cls(**_gemma2(**size | heads | {"query_pre_attn_scalar": 144.0} | changes))

    @classmethod
    def gemma2_27b_it(cls, **changes: Any) -> Self:
        """Gemma 2 27B, instruction-tuned."""
        return cls.gemma2_27b(**changes)


class Gemma(decoder.Decoder):
    """The shared decoder under the name of its family."""


def _gemma(**changes: Any) -> dict[str, Any]:
    """Return what the sizes of Gemma 1 share, with ``changes``."""
    settings: dict[str, Any] = {
        "vocab_size": 256_000,
        "head_dim": 256,
        "rope_theta": 10_000.0,
        "norm_eps": 1e-6,
        **MECHANISMS,
        "activation": "gelu_tanh",
        "weight_tying": True,
    }
    return settings | changes


def _gemma2(**changes: Any) -> dict[str, Any]:
    """Return what the sizes of Gemma 2 share, with ``changes``."""
    added: dict[str, Any] = {
        "sandwich_norms": True,
        "query_pre_attn_scalar": 256.0,
        "attn_logit_softcap": 50.0,
        "final_logit_softcap": 30.0,
        "sliding_window_size": 4096,
    }
    settings = _gemma(**added | changes)
    return {"attention_types": PATTERN[: settings["num_layers"]]} | settings


__getattr__ = reference_names.hints(__name__)
