"""Quantises the matrices of a loaded model in place: the base of QLoRA (arXiv:2305.14314)."""

import functools
import math

import jax
from flax import nnx

from tunix.models import lora, lora_config
from tunix.models.transformer import projection
from tunix.ops import quantize
from tunix.utils import config as config_lib
from tunix.utils import tree as tree_lib


def quantize_model(
    model: nnx.Module,
    kind: quantize.Kind,
    *,
    block: int | None = None,
    module_path: str = lora_config.ALL_LINEAR,
) -> nnx.Module:
    """Store the matching projections of ``model`` in few bits, in place, and return it.

    Matrices are quantised one after the other, layer by layer where they are stacked: beside the
    model, memory holds one matrix. Codes are frozen, and are never dense but while they are
    multiplied. Embeddings, head, norms and biases stay as they are. Projections that are already
    quantised, as in a second call with another ``module_path``, are left alone.

    Args:
        model: Any model made of :class:`~tunix.models.transformer.projection.Projection`.
        kind: ``nf4``, ``int8`` or ``int4``; see :func:`tunix.ops.quantize.quantize`.
        block: Rows (inputs) that share a scale, for every output; by default 64, for ``int8`` all.
        module_path: Which projections, as in :class:`~tunix.models.lora_config.LoraConfig`.

    Raises:
        ConfigError: Listing an unknown kind, patterns that match nothing, and matrices whose
            rows do not divide into blocks.
    """
    problems = []
    if kind not in quantize.KINDS:
        hint = config_lib.did_you_mean(kind, quantize.KINDS)
        problems.append(f"kind must be one of {list(quantize.KINDS)}, got {kind!r}{hint}")
    if block is not None and block < 1:
        problems.append(f"block must be at least 1, got {block}")
    if problems:
        raise config_lib.ConfigError("quantisation", problems)
    projections = dict(lora.iter_projections(model))
    pattern = lora_config.LoraConfig(rank=1, alpha=1.0, module_path=module_path)
    chosen = {
        path: projections[path]
        for path in pattern.select(projections)
        if not isinstance(projections[path].w, projection.QuantizedWeight)
    }
    for path, module in chosen.items():
        if (reason := quantize.problem(module.weight_shape, kind, block)) is not None:
            problems.append(f"{path} {module.weight_shape}: {reason}")
    if problems:
        raise config_lib.ConfigError(f"quantisation to {kind}", problems)
    for module in chosen.values():
        module.set_weight(_quantized(module.dense_weight(), kind, block))
    return model


def dequantize_model(model: nnx.Module) -> nnx.Module:
    """Make quantised projections dense, in place and in the dtype they had; adapters stay."""
    for _, module in lora.iter_projections(model):
        if isinstance(module.w, projection.QuantizedWeight):
            module.set_weight(module.dense_weight().astype(module.weight_dtype))
    return model


def is_quantized(model: nnx.Module) -> bool:
    """Return whether any projection of ``model`` is quantised."""
    modules = (module for _, module in lora.iter_projections(model))
    return any(isinstance(module.w, projection.QuantizedWeight) for module in modules)


def num_weights(model: nnx.Module) -> int:
    """Return how many weights the quantised matrices of ``model`` stand for."""
    modules = (module for _, module in lora.iter_projections(model))
    quantised = (m for m in modules if isinstance(m.w, projection.QuantizedWeight))
    return sum(math.prod(module.weight_shape) for module in quantised)


def num_bytes(model: nnx.Module) -> int:
    """Return the size of all parameters, quantised ones included."""
    return tree_lib.num_bytes(nnx.state(model))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _quantized(w: jax.Array, kind: quantize.Kind, block: int | None) -> quantize.Quantized:
    one = functools.partial(quantize.quantize, kind=kind, block=block)
    return one(w) if w.ndim == 2 else jax.lax.map(one, w)
