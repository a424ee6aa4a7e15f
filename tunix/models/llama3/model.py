"""Llama 3 and the models of its shape, SmolLM2 among them, as data.

Llama is the plain case of the shared decoder: grouped-query attention, rotary positions,
RMSNorm before each sublayer, SwiGLU, no biases. Llama 3.1 stretches the rotary
frequencies by 8, 3.2 by 32 and ties the small models' embeddings.
"""

import dataclasses
from typing import Any, Self

from tunix.models.transformer import config as config_lib
from tunix.models.transformer import decoder
from tunix.ops import rope
from tunix.utils import reference_names


def _stretched(factor: float) -> rope.RopeScaling:
    return rope.RopeScaling(
        kind="llama3",
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position=8192,
    )


RematConfig = config_lib.RematConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(config_lib.TransformerConfig):
    """A decoder of Llama 3's kind; a preset takes any field as a keyword to change it."""

    @classmethod
    def llama3_8b(cls, **changes: Any) -> Self:
        """Llama 3 8B."""
        settings: dict[str, Any] = {
            "num_layers": 32,
            "vocab_size": 128_256,
            "embed_dim": 4096,
            "hidden_dim": 14_336,
            "num_heads": 32,
            "num_kv_heads": 8,
            "head_dim": 128,
            "rope_theta": 500_000.0,
            "norm_eps": 1e-5,
        }
        return cls(**settings | changes)

    @classmethod
    def llama3_70b(cls, **changes: Any) -> Self:
        """Llama 3 70B."""
        size = {"num_layers": 80, "embed_dim": 8192, "hidden_dim": 28_672, "num_heads": 64}
        return cls.llama3_8b(**size | changes)

    @classmethod
    def llama3p1_8b(cls, **changes: Any) -> Self:
        """Llama 3.1 8B."""
        return cls.llama3_8b(**{"rope_scaling": _stretched(8.0)} | changes)

    @classmethod
    def llama3p1_8b_instruct(cls, **changes: Any) -> Self:
        """Llama 3.1 8B Instruct."""
        return cls.llama3p1_8b(**changes)

    @classmethod
    def llama3p1_70b(cls, **changes: Any) -> Self:
        """Llama 3.1 70B."""
        return cls.llama3_70b(**{"rope_scaling": _stretched(8.0)} | changes)

    @classmethod
    def llama3p1_405b(cls, **changes: Any) -> Self:
        """Llama 3.1 405B."""
        size = {"num_layers": 126, "embed_dim": 16_384, "hidden_dim": 53_248, "num_heads": 128}
        return cls.llama3p1_8b(**size | changes)

    @classmethod
    def llama3p2_1b(cls, **changes: Any) -> Self:
        """Llama 3.2 1B."""
        size = {"num_layers": 16, "embed_dim": 2048, "hidden_dim": 8192, "head_dim": 64}
        differs = {"rope_scaling": _stretched(32.0), "weight_tying": True}
        return cls.llama3_8b(**size | differs | changes)

    @classmethod
    def llama3p2_1b_instruct(cls, **changes: Any) -> Self:
        """Llama 3.2 1B Instruct."""
        return cls.llama3p2_1b(**changes)

    @classmethod
    def llama3p2_3b(cls, **changes: Any) -> Self:
        """Llama 3.2 3B."""
        size = {"num_layers": 28, "embed_dim": 3072, "hidden_dim": 8192, "num_heads": 24}
        differs = {"rope_scaling": _stretched(32.0), "weight_tying": True}
        return cls.llama3_8b(**size | differs | changes)

    @classmethod
    def llama3p2_3b_instruct(cls, **changes: Any) -> Self:
        """Llama 3.2 3B Instruct."""
        return cls.llama3p2_3b(**changes)

    @classmethod
    def llama3p3_70b(cls, **changes: Any) -> Self:
        """Llama 3.3 70B, published as an Instruct model only; the shape of 3.1 70B."""
        return cls.llama3p1_70b(**changes)

    @classmethod
    def deepseek_r1_distill_llama_8b(cls, **changes: Any) -> Self:
        """DeepSeek R1 distilled into Llama 3.1 8B."""
        return cls.llama3p1_8b(**changes)

    @classmethod
    def deepseek_r1_distill_llama_70b(cls, **changes: Any) -> Self:
        """DeepSeek R1 distilled into Llama 3.3 70B."""
        return cls.llama3p3_70b(**changes)

    @classmethod
    def smollm2_135m(cls, **changes: Any) -> Self:
        """SmolLM2 135M."""
        settings: dict[str, Any] = {
            "num_layers": 30,
            "vocab_size": 49_152,
            "embed_dim": 576,
            "hidden_dim": 1536,
            "num_heads": 9,
            "num_kv_heads": 3,
            "head_dim": 64,
            "rope_theta": 100_000.0,
            "norm_eps": 1e-5,
            "weight_tying": True,
        }
        return cls(**settings | changes)

    @classmethod
    def smollm2_360m(cls, **changes: Any) -> Self:
        """SmolLM2 360M."""
        size = {"num_layers": 32, "embed_dim": 960, "hidden_dim": 2560}
        return cls.smollm2_135m(**size | {"num_heads": 15, "num_kv_heads": 5} | changes)

    @classmethod
    def smollm2_1p7b(cls, **changes: Any) -> Self:
        """SmolLM2 1.7B; one key head per query head."""
        size = {"num_layers": 24, "embed_dim": 2048, "hidden_dim": 8192}
        heads = {"num_heads": 32, "num_kv_heads": 32, "rope_theta": 130_000.0}
        return cls.smollm2_135m(**size | heads | changes)


class Llama3(decoder.Decoder):
    """The shared decoder under the name of its family."""


__getattr__ = reference_names.hints(__name__)
