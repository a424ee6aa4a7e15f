"""How Hugging Face stores Gemma 3's image tower: names and layouts of tensors, config fields.

Files of the Hub say ``vision_tower.vision_model.``, transformers 5 writes ``vision_tower.`` alone,
and some tools put ``model.`` before either.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tunix.models.gemma3 import vision
from tunix.models.hf import hf_fields
from tunix.models.weight_table import Weight
from tunix.utils import config as config_lib

_TRANSPOSED = "o i -> i o"


def _tower(hf: str, ours: str, layout: str | None = None) -> Weight:
    prefixes = ("vision_tower.", "model.vision_tower.vision_model.", "model.vision_tower.")
    also = tuple(prefix + hf for prefix in prefixes)
    return Weight(f"vision_tower.vision_model.{hf}", f"vision_tower.{ours}", layout, also=also)


def _projector(hf: str, ours: str) -> Weight:
    name = f"multi_modal_projector.{hf}"
    return Weight(name, f"multi_modal_projector.{ours}", also=(f"model.{name}",))


def _affine(hf: str, ours: str, weight: str, bias: str, layout: str | None = None) -> list[Weight]:
    return [
        _tower(f"{hf}.weight", f"{ours}.{weight}", layout),
        _tower(f"{hf}.bias", f"{ours}.{bias}"),
    ]


_PROJECTIONS = (
    *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
    "mlp.fc1",
    "mlp.fc2",
)

WEIGHTS: Sequence[Weight] = (
    *_affine("embeddings.patch_embedding", "embeddings", "w", "b", "o c h w -> h w c o"),
    _tower("embeddings.position_embedding.weight", "embeddings.positions"),
    *(
        row
        for name in ("layer_norm1", "layer_norm2")
        for row in _affine(f"encoder.layers.{{i}}.{name}", f"layers.{{i}}.{name}", "scale", "bias")
    ),
    *(
        row
        for name in _PROJECTIONS
        for row in _affine(
            f"encoder.layers.{{i}}.{name}", f"layers.{{i}}.{name}", "w", "b", _TRANSPOSED
        )
    ),
    *_affine("post_layernorm", "post_layernorm", "scale", "bias"),
    _projector("mm_soft_emb_norm.weight", "norm_scale"),
    _projector("mm_input_projection_weight", "proj.w"),
)


def read_config(fields: hf_fields.HFFields) -> vision.SigLIPConfig | None:
    """Return the image tower of a ``config.json`` of type ``gemma3``, if it has one.

    Absent fields mean what ``SiglipVisionConfig`` says. Problems are added to those of ``fields``.
    """
    raw = fields.raw.get("vision_config")
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        fields.problems.append(f"vision_config must be a mapping, got {hf_fields.shown(raw)}")
        return None
    tower = hf_fields.HFFields(raw, fields.where)
    settings = _settings(fields, tower)
    fields.problems += [f"vision_config.{problem}" for problem in tower.problems]
    try:
        return vision.SigLIPConfig(**settings)
    except config_lib.ConfigError as error:
        fields.problems += [f"vision_config: {problem}" for problem in error.problems]
        return None


def write_config(config: vision.SigLIPConfig) -> dict[str, Any]:
    """Return the fields that :func:`read_config` reads."""
    return {
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": config.width,
            "intermediate_size": config.mlp_dim,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.num_heads,
            "num_channels": 3,
            "image_size": config.image_height,
            "patch_size": config.patch_size[0],
            "layer_norm_eps": config.norm_eps,
            "hidden_act": "gelu_pytorch_tanh",
            "attention_dropout": 0.0,
            "vision_use_head": False,
        },
        "mm_tokens_per_image": config.num_mm_tokens_per_image,
        "image_token_index": config.soft_token_placeholder,
        "boi_token_index": config.start_of_image_token,
        "eoi_token_index": config.end_of_image_token,
    }


def _settings(fields: hf_fields.HFFields, tower: hf_fields.HFFields) -> dict[str, Any]:
    tower.only("model_type", "siglip_vision_model")
    tower.only("hidden_act", "gelu_pytorch_tanh")
    tower.only("attention_dropout", 0.0)
    tower.only("num_channels", 3)
    tower.only("vision_use_head", False)
    side, patch = tower.size("image_size", 224), tower.size("patch_size", 16)
    return {
        "image_height": side,
        "image_width": side,
        "patch_size": (patch, patch),
        "width": tower.size("hidden_size", 768),
        "depth": tower.size("num_hidden_layers", 12),
        "mlp_dim": tower.size("intermediate_size", 3072),
        "num_heads": tower.size("num_attention_heads", 12),
        "norm_eps": tower.number("layer_norm_eps", 1e-6),
        "num_mm_tokens_per_image": fields.size("mm_tokens_per_image", 256),
        "soft_token_placeholder": fields.size("image_token_index", 262_144),
        "start_of_image_token": fields.size("boi_token_index", 255_999),
        "end_of_image_token": fields.size("eoi_token_index", 256_000),
    }
