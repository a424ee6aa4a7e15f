"""Gemma 3 as data (arXiv:2503.19786).

Gemma 3 differs from Gemma 2 in: queries and keys normalised per head instead of soft caps,
five local layers per global one, a rotary base of its own for local layers, and, from 4B
on, rotary positions of the global layers stretched eightfold.
"""

import dataclasses
from typing import Any, Self

from tunix.models.gemma import model as gemma
from tunix.models.gemma3 import multimodal, vision
from tunix.models.transformer import config as config_lib
from tunix.ops import rope
from tunix.utils import reference_names

PATTERN: tuple[config_lib.AttentionType, ...] = (
    "local",
    "local",
    "local",
    "local",
    "local",
    "global",
)
"""What the layers attend to."""

MECHANISMS = {**gemma.MECHANISMS, "sandwich_norms": True, "qk_norm": True}
"""What no file of the family says because all its models do it."""

RematConfig = config_lib.RematConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(multimodal.ImageTextConfig):
    """A decoder of Gemma 3's kind; a preset takes any field as a keyword to change it."""

    @classmethod
    def gemma3_270m(cls, **changes: Any) -> Self:
        """Gemma 3 270M."""
        size = {"num_layers": 18, "embed_dim": 640, "hidden_dim": 2048}
        return cls(**_gemma3(**size | {"num_heads": 4, "num_kv_heads": 1} | changes))

    @classmethod
    def gemma3_270m_it(cls, **changes: Any) -> Self:
        """Gemma 3 270M, instruction-tuned."""
        return cls.gemma3_270m(**changes)

    @classmethod
    def gemma3_1b_pt(cls, **changes: Any) -> Self:
        """Gemma 3 1B."""
        size = {"num_layers": 26, "embed_dim": 1152, "hidden_dim": 6912}
        return cls(**_gemma3(**size | {"num_heads": 4, "num_kv_heads": 1} | changes))

    @classmethod
    def gemma3_1b_it(cls, **changes: Any) -> Self:
        """Gemma 3 1B, instruction-tuned."""
        return cls.gemma3_1b_pt(**changes)

    @classmethod
    def gemma3_4b_pt(cls, *, text_only: bool = True, **changes: Any) -> Self:
        """Gemma 3 4B; its text model, or the image tower too."""
        size = {"num_layers": 34, "embed_dim": 2560, "hidden_dim": 10_240}
        heads = {"num_heads": 8, "num_kv_heads": 4}
        return cls(**_gemma3(**_with_images(text_only) | size | heads | changes))

    @classmethod
    def gemma3_4b_it(cls, *, text_only: bool = True, **changes: Any) -> Self:
        """Gemma 3 4B, instruction-tuned; see :meth:`gemma3_4b_pt`."""
        return cls.gemma3_4b_pt(text_only=text_only, **changes)

    @classmethod
    def gemma3_12b_pt(cls, *, text_only: bool = True, **changes: Any) -> Self:
        """Gemma 3 12B; its text model, or the image tower too."""
        size = {"num_layers": 48, "embed_dim": 3840, "hidden_dim": 15_360}
        heads = {"num_heads": 16, "num_kv_heads": 8}
        return cls(**_gemma3(**_with_images(text_only) | size | heads | changes))

    @classmethod
    def gemma3_12b_it(cls, *, text_only: bool = True, **changes: Any) -> Self:
        """Gemma 3 12B, instruction-tuned; see :meth:`gemma3_12b_pt`."""
        return cls.gemma3_12b_pt(text_only=text_only, **changes)

    @classmethod
    def gemma3_27b_pt(cls, *, text_only: bool = True, **changes: Any) -> Self:
        """Gemma 3 27B; scores are scaled by the model's width per head."""
        size = {"num_layers": 62, "embed_dim": 5376, "hidden_dim": 21_504}
        heads = {"num_heads": 32, "num_kv_heads": 16, "head_dim": 128}
        scale = {"query_pre_attn_scalar": 168.0}
        return cls(**_gemma3(**_with_images(text_only) | size | heads | scale | changes))

    @classmethod
    def gemma3_27b_it(cls, *, text_only: bool = True, **changes: Any) -> Self:
        """Gemma 3 27B, instruction-tuned; see :meth:`gemma3_27b_pt`."""
        return cls.gemma3_27b_pt(text_only=text_only, **changes)


class Gemma3(multimodal.ImageTextDecoder):
    """The shared decoder, with an image tower where there is one, under its family's name."""


def _with_images(text_only: bool) -> dict[str, Any]:
    """Return what the models that see images, 4B and larger, share."""
    return {
        # 64 more tokens than the tokenizer has, the placeholder of images among them.
        "vocab_size": 262_208,
        "sliding_window_size": 1024,
        "rope_scaling": rope.RopeScaling(kind="linear", factor=8.0),
        "vision_config": None if text_only else vision.SigLIPConfig(),
    }


def _gemma3(**changes: Any) -> dict[str, Any]:
    """Return what all sizes share, with ``changes``."""
    settings: dict[str, Any] = {
        "vocab_size": 262_144,
        "head_dim": 256,
        "rope_theta": 1_000_000.0,
        "local_rope_theta": 10_000.0,
        "norm_eps": 1e-6,
        **MECHANISMS,
        "activation": "gelu_tanh",
        "weight_tying": True,
        "query_pre_attn_scalar": 256.0,
        "sliding_window_size": 512,
    } | changes
    return {"attention_types": PATTERN[: settings["num_layers"]]} | settings


__getattr__ = reference_names.hints(__name__)
