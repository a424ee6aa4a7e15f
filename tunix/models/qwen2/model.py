"""Qwen 2 and Qwen 2.5 (Coder, Math) and the DeepSeek R1 distillates of them, as data.

Qwen 2 is the shared decoder with biases on queries, keys and values. Small models tie their
embeddings; Math models are trained on short texts and keep a small base of the rotary frequencies.
"""

import dataclasses
from typing import Any, Self

from tunix.models.transformer import config as config_lib
from tunix.models.transformer import decoder
from tunix.utils import reference_names

RematConfig = config_lib.RematConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(config_lib.TransformerConfig):
    """A decoder of Qwen 2's kind; a preset takes any field as a keyword to change it."""

    qkv_bias: bool = True

    @classmethod
    def qwen2p5_0p5b(cls, **changes: Any) -> Self:
        """Qwen 2.5 0.5B."""
        settings: dict[str, Any] = {
            "num_layers": 24,
            "vocab_size": 151_936,
            "embed_dim": 896,
            "hidden_dim": 4864,
            "num_heads": 14,
            "num_kv_heads": 2,
            "head_dim": 64,
            "rope_theta": 1_000_000.0,
            "norm_eps": 1e-6,
            "weight_tying": True,
        }
        return cls(**settings | changes)

    @classmethod
    def qwen2p5_1p5b(cls, **changes: Any) -> Self:
        """Qwen 2.5 1.5B."""
        size = {"num_layers": 28, "embed_dim": 1536, "hidden_dim": 8960}
        return cls.qwen2p5_0p5b(**size | {"num_heads": 12, "head_dim": 128} | changes)

    @classmethod
    def qwen2p5_3b(cls, **changes: Any) -> Self:
        """Qwen 2.5 3B."""
        size = {"num_layers": 36, "embed_dim": 2048, "hidden_dim": 11_008}
        return cls.qwen2p5_0p5b(**size | {"num_heads": 16, "head_dim": 128} | changes)

    @classmethod
    def qwen2p5_7b(cls, **changes: Any) -> Self:
        """Qwen 2.5 7B; from here on embeddings are not tied and the vocabulary is padded more."""
        size = {"num_layers": 28, "embed_dim": 3584, "hidden_dim": 18_944}
        heads = {"num_heads": 28, "num_kv_heads": 4, "head_dim": 128}
        differs = {"vocab_size": 152_064, "weight_tying": False}
        return cls.qwen2p5_0p5b(**size | heads | differs | changes)

    @classmethod
    def qwen2p5_14b(cls, **changes: Any) -> Self:
        """Qwen 2.5 14B; from here on the base models have the larger epsilon."""
        size = {"num_layers": 48, "embed_dim": 5120, "hidden_dim": 13_824, "norm_eps": 1e-5}
        return cls.qwen2p5_7b(**size | {"num_heads": 40, "num_kv_heads": 8} | changes)

    @classmethod
    def qwen2p5_32b(cls, **changes: Any) -> Self:
        """Qwen 2.5 32B."""
        return cls.qwen2p5_14b(**{"num_layers": 64, "hidden_dim": 27_648} | changes)

    @classmethod
    def qwen2p5_72b(cls, **changes: Any) -> Self:
        """Qwen 2.5 72B."""
        size = {"num_layers": 80, "embed_dim": 8192, "hidden_dim": 29_568, "num_heads": 64}
        return cls.qwen2p5_14b(**size | changes)

    @classmethod
    def qwen2p5_math_1p5b(cls, **changes: Any) -> Self:
        """Qwen 2.5 Math 1.5B."""
        return cls.qwen2p5_1p5b(**{"rope_theta": 10_000.0} | changes)

    @classmethod
    def qwen2p5_math_7b(cls, **changes: Any) -> Self:
        """Qwen 2.5 Math 7B."""
        return cls.qwen2p5_7b(**{"rope_theta": 10_000.0} | changes)

    @classmethod
    def qwen2p5_math_72b(cls, **changes: Any) -> Self:
        """Qwen 2.5 Math 72B."""
        return cls.qwen2p5_72b(**{"rope_theta": 10_000.0} | changes)

    @classmethod
    def deepseek_r1_distill_qwen_1p5b(cls, **changes: Any) -> Self:
        """DeepSeek R1 distilled into Qwen 2.5 Math 1.5B, with a head of its own."""
        return cls.qwen2p5_math_1p5b(**{"weight_tying": False} | changes)

    # Models that differ from another in their weights alone.
    deepseek_r1_distill_qwen_7b = qwen2p5_math_7b
    deepseek_r1_distill_qwen_14b = qwen2p5_14b
    deepseek_r1_distill_qwen_32b = qwen2p5_32b

    qwen2p5_0p5b_instruct = qwen2p5_0p5b
    qwen2p5_1p5b_instruct = qwen2p5_1p5b
    qwen2p5_3b_instruct = qwen2p5_3b
    qwen2p5_7b_instruct = qwen2p5_7b
    qwen2p5_math_1p5b_instruct = qwen2p5_math_1p5b
    qwen2p5_math_7b_instruct = qwen2p5_math_7b

    qwen2p5_coder_0p5b = qwen2p5_0p5b
    qwen2p5_coder_1p5b = qwen2p5_1p5b
    qwen2p5_coder_3b = qwen2p5_3b
    qwen2p5_coder_7b = qwen2p5_7b
    qwen2p5_coder_14b = qwen2p5_14b
    qwen2p5_coder_32b = qwen2p5_32b

    qwen2_0p5b = qwen2p5_0p5b
    qwen2_1p5b = qwen2p5_1p5b
    qwen2_7b = qwen2p5_7b
    qwen2_72b = qwen2p5_72b


class Qwen2(decoder.Decoder):
    """The shared decoder under the name of its family."""


__getattr__ = reference_names.hints(__name__)
