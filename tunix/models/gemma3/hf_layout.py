"""How Hugging Face stores Gemma 3: names and layouts of tensors, fields of the config.

Files of 4B and larger hold an image tower beside the text model (:mod:`vision_params`). A model
whose config has no ``vision_config`` is the text model alone, and leaves the tower where it is.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tunix.models.gemma import hf_layout as gemma
from tunix.models.gemma3 import model as model_lib
from tunix.models.gemma3 import vision, vision_params
from tunix.models.hf import hf_fields, hf_write
from tunix.models.transformer import config as config_lib
from tunix.models.weight_table import Weight
from tunix.ops import rope
from tunix.utils import config as config_utils

IMAGE_PARTS: Sequence[Weight] = tuple(
    Weight(f"{prefix}{part}.{{rest}}", None)
    for prefix in ("", "model.")
    for part in ("vision_tower", "multi_modal_projector")
)
"""What files of 4B and larger hold besides the text model, for a model without it."""

_TEXT_PREFIXES = ("language_model.model.", "model.language_model.")
"""What stands for ``model.`` in such files: on disk, and in transformers since 4.52."""

_HEAD_ALIASES = ("language_model.lm_head.weight",)


def _with_aliases(row: Weight) -> Weight:
    if not row.hf.startswith("model."):
        return dataclasses.replace(row, also=_HEAD_ALIASES)
    names = tuple(prefix + row.hf.removeprefix("model.") for prefix in _TEXT_PREFIXES)
    return dataclasses.replace(row, also=names)


_TEXT_WEIGHTS: Sequence[Weight] = (
    *map(_with_aliases, gemma.WEIGHTS),
    *(
        _with_aliases(
            Weight(
                f"model.layers.{{i}}.self_attn.{name}.weight",
                f"layers.{{i}}.self_attn.{name}.scale",
            )
        )
        for name in ("q_norm", "k_norm")
    ),
)

WEIGHTS: Sequence[Weight] = (
    *_TEXT_WEIGHTS,
    *vision_params.WEIGHTS,
    *IMAGE_PARTS,
)


def export_weights(config: config_lib.TransformerConfig) -> Sequence[Weight]:
    """Return the rows under the names that files of such a model have on the Hub."""
    if _tower_of(config) is None:
        return WEIGHTS
    text = (dataclasses.replace(row, hf=row.also[0]) for row in _TEXT_WEIGHTS if row.also)
    return (*text, *vision_params.WEIGHTS)


_TEXT_DEFAULTS: Mapping[str, int] = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
"""What an absent field of ``text_config`` means: the published files only say what differs."""

_THETA, _LOCAL_THETA = 1_000_000.0, 10_000.0


def read_config(fields: hf_fields.HFFields) -> dict[str, Any]:
    """Return the fields of :class:`ModelConfig` of a ``gemma3_text`` or ``gemma3`` file.

    Absent fields mean what ``Gemma3TextConfig`` and ``Gemma3Config`` of transformers say.
    """
    if fields.raw.get("model_type") != "gemma3":
        return _read_text(fields)
    text = fields.raw.get("text_config")
    if not isinstance(text, Mapping):
        fields.problems.append(f"text_config must be a mapping, got {hf_fields.shown(text)}")
        return {}
    # transformers ties by the outer flag, where there is one.
    tied = fields.raw.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    raw = {**_TEXT_DEFAULTS, **text, "tie_word_embeddings": tied}
    inner = hf_fields.HFFields(raw, f"{fields.where}, text_config")
    inner.only("model_type", "gemma3_text")
    settings = _read_text(inner)
    fields.problems += [f"text_config: {problem}" for problem in inner.problems]
    fields.only("quantization_config")
    return settings | {"vision_config": vision_params.read_config(fields)}


def _read_text(fields: hf_fields.HFFields) -> dict[str, Any]:
    settings = gemma.read_shared(fields) | model_lib.MECHANISMS
    # transformers reads the field and does not apply it; a file that has it asks for the cap.
    fields.only("attn_logit_softcapping")
    window_default = None if "sliding_window" in fields.raw else 4096
    types = fields.attention_types(settings["num_layers"], _pattern(fields))
    (theta, scaling), local_theta = _read_rotary(fields)
    if "local" not in types:
        local_theta, window = None, None
    else:
        window = fields.size("sliding_window", window_default)
    return settings | {
        "activation": gemma.read_activation(fields),
        "query_pre_attn_scalar": fields.number("query_pre_attn_scalar", 256.0),
        "final_logit_softcap": fields.number_or_none("final_logit_softcapping", None),
        "attention_types": types,
        "sliding_window_size": window,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "local_rope_theta": local_theta,
    }


def _pattern(fields: hf_fields.HFFields) -> tuple[config_lib.AttentionType, ...]:
    """Return what a file without ``layer_types`` means: one global layer after some local ones."""
    old, new = "sliding_window_pattern", "_sliding_window_pattern"
    period = fields.size(old if fields.raw.get(old) is not None else new, len(model_lib.PATTERN))
    local: list[config_lib.AttentionType] = ["local"] * (period - 1)
    return (*local, "global")


def _read_rotary(
    fields: hf_fields.HFFields,
) -> tuple[tuple[float, rope.RopeScaling | None], float]:
    """Return base and scaling of global layers, and the base of local ones.

    transformers 5 has one block per kind of layer in ``rope_parameters``; earlier files have
    ``rope_theta`` and ``rope_scaling``, meant for global layers, and ``rope_local_base_freq``.
    """
    raw = fields.raw
    blocks = raw.get("rope_parameters") or {}
    if not isinstance(blocks, Mapping):
        fields.problems.append(f"rope_parameters must be a mapping, got {hf_fields.shown(blocks)}")
        return (_THETA, None), _LOCAL_THETA
    fields.problems += config_utils.unknown_key_problems(
        blocks, hf_fields.LAYER_TYPES, where="rope_parameters"
    )

    def read(
        kind: str, base: Any, scaling: Any, default: float
    ) -> tuple[float, rope.RopeScaling | None]:
        block = blocks.get(kind) or {}
        is_block = isinstance(block, Mapping)
        says_base = base is not None or (is_block and block.get("rope_theta") is not None)
        one = hf_fields.HFFields(
            {
                "rope_theta": base if says_base else default,
                "rope_parameters": block,
                "rope_scaling": scaling,
                "max_position_embeddings": raw.get("max_position_embeddings"),
            },
            fields.where,
        )
        found = one.rotary()
        fields.problems += [f"{kind}: {problem}" for problem in one.problems]
        return found

    full = read("full_attention", raw.get("rope_theta"), raw.get("rope_scaling"), _THETA)
    local_theta, local_scaling = read(
        "sliding_attention", raw.get("rope_local_base_freq"), None, _LOCAL_THETA
    )
    if local_scaling is not None:
        fields.problems.append(
            f"rope_parameters.sliding_attention is scaled ({local_scaling.kind}), which is not "
            "supported (only default)"
        )
    return full, local_theta


def write_config(config: config_lib.TransformerConfig) -> dict[str, Any]:
    """Return the ``config.json`` of the model, of the text model if it has no image tower."""
    text = _write_text(config)
    stored = hf_write.dtype(config.param_dtype)
    if (tower := _tower_of(config)) is None:
        return {**hf_write.architecture("gemma3_text", "Gemma3ForCausalLM"), **text}
    return {
        **hf_write.architecture("gemma3", "Gemma3ForConditionalGeneration"),
        # The dtype of the files is said once, for all parts.
        "text_config": {"model_type": "gemma3_text"}
        | {key: value for key, value in text.items() if key not in stored},
        **vision_params.write_config(tower),
        "tie_word_embeddings": config.weight_tying,
        **stored,
    }


def _tower_of(config: config_lib.TransformerConfig) -> vision.SigLIPConfig | None:
    return config.vision_config if isinstance(config, model_lib.ModelConfig) else None


def _write_text(config: config_lib.TransformerConfig) -> dict[str, Any]:
    theta, scaling = config.rope_theta, config.rope_scaling
    full = hf_write.rope_parameters(theta, scaling)
    if config.local_rope_theta is not None:
        local = hf_write.rope_parameters(config.local_rope_theta, None)
    else:  # like the others, or there are none
        local = full if any(config.is_local) else hf_write.rope_parameters(_LOCAL_THETA, None)
    return {
        **gemma.write_shared(config),
        **gemma.write_attention(config),
        "final_logit_softcapping": config.final_logit_softcap,
        "rope_parameters": {"full_attention": full, "sliding_attention": local},
        # The same for transformers 4.
        "rope_theta": theta,
        "rope_scaling": None if scaling is None else full,
        "rope_local_base_freq": local["rope_theta"],
    }
