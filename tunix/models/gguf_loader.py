"""Presents a GGUF file as the Hugging Face checkpoint it was converted from.

Metadata becomes a ``config.json`` dictionary and tensors get their Hugging Face names and
row order, so that one config reader and one weight table serve both formats.
"""

import dataclasses
import math
import pathlib
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tunix.models import gguf_file
from tunix.models.hf import hf_fields
from tunix.ops import rope
from tunix.utils import config

ROPE_FACTORS = "rope_freqs.weight"
"""Tensor by which each rotary frequency is divided; how llama.cpp stores Llama 3.1's scaling."""

_TOP_NAMES: Mapping[str, str] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA3_NAMES: Mapping[str, str] = {
    **_LAYER_NAMES,
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Architecture:
    """What the converter of llama.cpp did to the models of one ``general.architecture``."""

    hf_type: str
    """Their ``model_type``."""
    layer_names: Mapping[str, str]
    interleaved: bool = False
    """Whether the two halves of every query and key head were interleaved."""
    norm_offset: float = 0.0
    """What was added to the scales of norms."""


_ARCHITECTURES: Mapping[str, _Architecture] = {
    "llama": _Architecture(hf_type="llama", layer_names=_LAYER_NAMES, interleaved=True),
    "gemma3": _Architecture(hf_type="gemma3_text", layer_names=_GEMMA3_NAMES, norm_offset=1.0),
}
"""Everything that can be read, by ``general.architecture``."""

_GEMMA3_PERIOD = 6
_GEMMA3_27B_LAYERS = 62


class GGUFCheckpoint:
    """The tensors of a GGUF file under their Hugging Face names, and its ``config``."""

    def __init__(self, path: str | pathlib.Path):
        """Read the metadata.

        Raises:
            GGUFError: If the file is not a complete GGUF file.
            ConfigError: If its architecture is unknown or its metadata incomplete.
        """
        self.where = str(path)
        self._file = gguf_file.GGUFFile(path)
        self._metadata = _Metadata(self._file.metadata, self.where)
        self.config = _hf_config(self._metadata, self._file)
        self._architecture = _ARCHITECTURES[self._metadata.architecture]
        layer_names = self._architecture.layer_names
        tensors = (name for name in self._file.shapes if name != ROPE_FACTORS)
        self._names = {hf_name(name, layer_names): name for name in tensors}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by Hugging Face name."""
        return {hf: self._file.shapes[name] for hf, name in self._names.items()}

    def read(self, name: str) -> np.ndarray:
        """Return one tensor in float32, by Hugging Face name."""
        array = self._file.read(self._names[name])
        if self._architecture.interleaved and name.endswith("q_proj.weight"):
            return unpermute(array, self.config["num_attention_heads"])
        if self._architecture.interleaved and name.endswith("k_proj.weight"):
            return unpermute(array, self.config["num_key_value_heads"])
        if self._architecture.norm_offset and name.endswith("norm.weight"):
            return array - np.float32(self._architecture.norm_offset)
        return array


def hf_name(name: str, layer_names: Mapping[str, str]) -> str:
    """Return the Hugging Face name of a tensor; unknown names stay, so that an audit shows them."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    match name.split("."):
        case ["blk", layer, part, kind] if part in layer_names:
            return f"model.layers.{layer}.{layer_names[part]}.{kind}"
    return name


def unpermute(w: np.ndarray, num_heads: int) -> np.ndarray:
    """Return rows of a query or key projection in Hugging Face's order.

    llama.cpp rotates neighbouring channels of a head, Hugging Face channels that lie half a
    head apart; the converter has interleaved the two halves.
    """
    half = w.shape[0] // num_heads // 2
    return w.reshape(num_heads, half, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


class _Metadata:
    """Metadata by key without the architecture's prefix; remembers what is missing."""

    def __init__(self, raw: Mapping[str, Any], where: str):
        self.raw, self.where = raw, where
        self.architecture = str(raw.get("general.architecture"))
        self.problems: list[str] = []

    def get(self, key: str, default: Any = None) -> Any:
        return self.raw.get(f"{self.architecture}.{key}", default)

    def number(self, key: str, default: Any = None) -> Any:
        """Return a positive number; some architectures list one a layer, which is refused."""
        value = self.get(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and 0 < value < math.inf:
            return value
        shown = reprlib.repr(value)
        found = "is missing" if value is None else f"must be a positive number, got {shown}"
        self.problems.append(f"metadata {self.architecture}.{key} {found}")
        return 1

    def count(self, key: str) -> int:
        """Return a positive whole number of what is gone through one by one."""
        value = self.number(key)
        if isinstance(value, int) and value <= hf_fields.MOST_COUNTED:
            return value
        self.problems.append(
            f"metadata {self.architecture}.{key} must be a whole number of at most "
            f"{hf_fields.MOST_COUNTED:,}, got {value}"
        )
        return 1

    def refuse(self, key: str, *allowed: Any) -> None:
        value = self.get(key)
        if value is not None and value not in allowed:
            self.problems.append(
                f"metadata {self.architecture}.{key} is {reprlib.repr(value)}, which is not "
                f"supported (only {' or '.join(map(repr, allowed)) or 'no such entry'})"
            )

    def raise_problems(self) -> None:
        if self.problems:
            raise config.ConfigError(f"GGUF file {self.where}", self.problems)


def _hf_config(metadata: _Metadata, file: gguf_file.GGUFFile) -> dict[str, Any]:
    """Return the ``config.json`` that the file's metadata amounts to."""
    architecture = metadata.architecture
    if architecture not in _ARCHITECTURES:
        hint = config.did_you_mean(architecture, _ARCHITECTURES)
        metadata.problems.append(
            f"general.architecture is {architecture!r}, which is not supported; known are "
            f"{list(_ARCHITECTURES)}{hint}"
        )
        metadata.raise_problems()
    embedding = file.shapes.get("token_embd.weight", ())
    if len(embedding) != 2:
        found = f"has shape {embedding}" if embedding else "is missing"
        metadata.problems.append(f"tensor token_embd.weight {found}; expected a matrix")
    heads, width = metadata.number("attention.head_count"), metadata.number("embedding_length")
    layers, hidden = metadata.count("block_count"), metadata.number("feed_forward_length")
    eps = metadata.number("attention.layer_norm_rms_epsilon")
    head_dim = metadata.number("attention.key_length", max(1, width // heads))
    metadata.refuse("attention.value_length", head_dim)
    metadata.refuse("rope.dimension_count", head_dim)
    metadata.refuse("expert_count", 0)
    metadata.raise_problems()
    result = {
        "model_type": _ARCHITECTURES[architecture].hf_type,
        "vocab_size": embedding[0],
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.number("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": _shortest(eps),
        "tie_word_embeddings": "output.weight" not in file.shapes,
        "rope_parameters": _rope_parameters(metadata, file, head_dim),
    }
    if architecture == "gemma3":
        result |= _gemma3_fields(metadata, result)
    metadata.raise_problems()
    return result


def _gemma3_fields(metadata: _Metadata, shared: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Gemma 3 has on top.

    llama.cpp knows some of it without being told: the period of global layers, the base of
    local ones and, for the 27B model, a query scale of its own.
    """
    width, heads = shared["hidden_size"], shared["num_attention_heads"]
    is_27b = shared["num_hidden_layers"] == _GEMMA3_27B_LAYERS
    local_theta = _shortest(metadata.number("rope.freq_base_swa", 10_000.0))
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": width // heads if is_27b else shared["head_dim"],
        "sliding_window": metadata.number("attention.sliding_window"),
        "sliding_window_pattern": metadata.number(
            "attention.sliding_window_pattern", _GEMMA3_PERIOD
        ),
        "final_logit_softcapping": metadata.get("final_logit_softcapping"),
        "rope_parameters": {
            "full_attention": shared["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": local_theta},
        },
    }


def _rope_parameters(
    metadata: _Metadata, file: gguf_file.GGUFFile, head_dim: int
) -> dict[str, Any]:
    theta = _shortest(metadata.number("rope.freq_base", 10_000.0))
    kind = metadata.get("rope.scaling.type", "none")
    if ROPE_FACTORS in file.shapes:
        return {"rope_theta": theta, **_llama3_scaling(metadata, file, theta, head_dim)}
    metadata.refuse("rope.scaling.type", "none", "linear")
    if kind == "none":
        factor = metadata.number("rope.scale_linear", 1.0)  # what files of 2023 say
        kind = "none" if factor == 1.0 else "linear"
    else:
        factor = metadata.get("rope.scaling.factor")
    if kind == "none":
        return {"rope_theta": theta, "rope_type": "default"}
    return {"rope_theta": theta, "rope_type": kind, "factor": factor}


def _llama3_scaling(
    metadata: _Metadata, file: gguf_file.GGUFFile, theta: float, head_dim: int
) -> dict[str, Any]:
    """Return the Llama 3.1 scaling whose frequencies are those of the file.

    The file stores factors only. The largest is the scaling's factor; the rest must follow
    from the numbers that every published Llama has, which is checked.
    """
    factors = file.read(ROPE_FACTORS)
    scaling = rope.RopeScaling(
        kind="llama3",
        factor=max(1.0, float(factors.max())),
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position=8192,
    )
    plain = rope.rope_frequencies(head_dim, theta)
    scaled = rope.rope_frequencies(head_dim, theta, scaling)
    if factors.shape != plain.shape or not np.allclose(plain / factors, scaled, rtol=1e-4, atol=0):
        metadata.problems.append(
            f"tensor {ROPE_FACTORS} is not the rotary scaling of Llama 3.1 to 3.3 "
            f"(low 1, high 4, original length 8192); found factors from {factors.min()} to "
            f"{factors.max()}"
        )
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_position,
    }


def _shortest(value: float) -> float:
    """Return the number that was meant by a float32 from a file: 1e-5, not 9.999999747e-06."""
    return float(np.format_float_positional(np.float32(value)))
