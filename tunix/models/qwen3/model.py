"""Qwen 3 as data, dense and with experts.

Qwen 3 is the shared decoder with normalised queries and keys and heads of width 128 whatever
the width of the model. Of the models with experts every layer has them.
"""

import dataclasses
from typing import Any, Self

from tunix.models.transformer import config as config_lib
from tunix.models.transformer import decoder
from tunix.utils import reference_names

RematConfig = config_lib.RematConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(config_lib.TransformerConfig):
    """A decoder of Qwen 3's kind; a preset takes any field as a keyword to change it."""

    qk_norm: bool = True

    @classmethod
    def qwen3_0p6b(cls, **changes: Any) -> Self:
        """Qwen 3 0.6B."""
        settings: dict[str, Any] = {
            "num_layers": 28,
            "vocab_size": 151_936,
            "embed_dim": 1024,
            "hidden_dim": 3072,
            "num_heads": 16,
            "num_kv_heads": 8,
            "head_dim": 128,
            "rope_theta": 1_000_000.0,
            "norm_eps": 1e-6,
            "weight_tying": True,
        }
        return cls(**settings | changes)

    @classmethod
    def qwen3_1p7b(cls, **changes: Any) -> Self:
        """Qwen 3 1.7B."""
        return cls.qwen3_0p6b(**{"embed_dim": 2048, "hidden_dim": 6144} | changes)

    @classmethod
    def qwen3_4b(cls, **changes: Any) -> Self:
        """Qwen 3 4B."""
        size = {"num_layers": 36, "embed_dim": 2560, "hidden_dim": 9728, "num_heads": 32}
        return cls.qwen3_0p6b(**size | changes)

    @classmethod
    def qwen3_4b_instruct_2507(cls, **changes: Any) -> Self:
        """Qwen 3 4B Instruct of July 2025, for longer texts."""
        return cls.qwen3_4b(**{"rope_theta": 5_000_000.0} | changes)

    @classmethod
    def qwen3_8b(cls, **changes: Any) -> Self:
        """Qwen 3 8B; from here on embeddings are not tied."""
        size = {"num_layers": 36, "embed_dim": 4096, "hidden_dim": 12_288, "num_heads": 32}
        return cls.qwen3_0p6b(**size | {"weight_tying": False} | changes)

    @classmethod
    def qwen3_14b(cls, **changes: Any) -> Self:
        """Qwen 3 14B."""
        size = {"num_layers": 40, "embed_dim": 5120, "hidden_dim": 17_408, "num_heads": 40}
        return cls.qwen3_8b(**size | changes)

    @classmethod
    def qwen3_32b(cls, **changes: Any) -> Self:
        """Qwen 3 32B."""
        size = {"num_layers": 64, "embed_dim": 5120, "hidden_dim": 25_600, "num_heads": 64}
        return cls.qwen3_8b(**size | changes)

    @classmethod
    def qwen3_30b_a3b(cls, **changes: Any) -> Self:
        """Qwen 3 30B with 128 experts, of which a token uses 8."""
        size = {"num_layers": 48, "embed_dim": 2048, "hidden_dim": 768, "num_kv_heads": 4}
        experts = {"num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True}
        return cls.qwen3_8b(**size | experts | changes)

    @classmethod
    def qwen3_30b_a3b_instruct_2507(cls, **changes: Any) -> Self:
        """Qwen 3 30B-A3B Instruct of July 2025, for longer texts."""
        return cls.qwen3_30b_a3b(**{"rope_theta": 10_000_000.0} | changes)

    @classmethod
    def qwen3_235b_a22b(cls, **changes: Any) -> Self:
        """Qwen 3 235B with 128 experts, of which a token uses 8."""
        size = {"num_layers": 94, "embed_dim": 4096, "hidden_dim": 1536, "num_heads": 64}
        return cls.qwen3_30b_a3b(**size | changes)

    @classmethod
    def qwen3_235b_a22b_instruct_2507(cls, **changes: Any) -> Self:
        """Qwen 3 235B-A22B Instruct of July 2025, for longer texts."""
        return cls.qwen3_235b_a22b(**{"rope_theta": 5_000_000.0} | changes)

    # Models that differ from another in their weights alone.
    qwen3_0p6b_base = qwen3_0p6b
    qwen3_1p7b_base = qwen3_1p7b
    qwen3_4b_base = qwen3_4b
    qwen3_8b_base = qwen3_8b
    qwen3_14b_base = qwen3_14b
    qwen3_30b_a3b_base = qwen3_30b_a3b

    qwen3_4b_thinking_2507 = qwen3_4b_instruct_2507
    qwen3_30b_a3b_thinking_2507 = qwen3_30b_a3b_instruct_2507
    qwen3_235b_a22b_thinking_2507 = qwen3_235b_a22b_instruct_2507


class Qwen3(decoder.Decoder):
    """The shared decoder under the name of its family."""


__getattr__ = reference_names.hints(__name__)
