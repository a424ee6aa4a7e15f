"""One table per family that says where each Hugging Face tensor lives in our model.

The engine below reads a table in both directions: it fills a model from any source of
named arrays, and it names a model's arrays as Hugging Face does. It works for stacked
(scanned) and unrolled decoders alike. Nothing here knows a family or a file format.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import ml_dtypes
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from tunix.models import weight_table
from tunix.models.transformer import config as config_lib
from tunix.models.transformer import decoder, sharding

ModelT = TypeVar("ModelT", bound=decoder.Decoder)

_ALIGNMENT = 64  # bytes; what JAX wants of a host array that it takes over


def load_model(
    model_class: Callable[..., ModelT],
    config: config_lib.TransformerConfig,
    table: Sequence[weight_table.Weight],
    source: weight_table.TensorSource,
    *,
    mesh: Mesh | None = None,
) -> ModelT:
    """Return ``model_class(config)`` with the weights of ``source``, in ``config.param_dtype``.

    Names and shapes are compared before anything is read. Host memory holds one (stacked)
    parameter at a time; with a mesh each goes to its place on it as soon as it is read.

    Raises:
        WeightsError: Listing all tensors that are missing, unexpected, misshapen, not
            floating point, or redundant copies that differ.
        ShardingError: If the mesh does not divide a parameter.
    """
    abstract = nnx.eval_shape(lambda: model_class(config, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(abstract)
    variables = [(path, dotted(path), leaf) for path, leaf in nnx.to_flat_state(state)]
    shapes = {name: leaf.shape for _, name, leaf in variables}
    slots = weight_table.slots(table, shapes, config.num_layers)
    copies = weight_table.audit(table, slots, shapes, source)

    where = places(state, mesh)
    filled = {
        name: jax.device_put(_filled(leaf, slots[name], source), where[name])
        for _, name, leaf in variables
    }
    for row in copies:
        _check_copy(row, filled, source)
    loaded = [(path, leaf.replace(filled[name])) for path, name, leaf in variables]
    return nnx.merge(graphdef, nnx.from_flat_state(loaded))


def export_tensors(
    model: decoder.Decoder, table: Sequence[weight_table.Weight]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield Hugging Face name and array of every parameter of ``model``, one at a time.

    Arrays keep the dtype of the parameter. A sharded parameter is gathered when its turn comes.

    Raises:
        WeightsError: Before the first tensor, if a parameter has no Hugging Face name, as
            LoRA adapters have none until they are merged.
    """
    leaves = {dotted(path): leaf for path, leaf in nnx.to_flat_state(nnx.state(model))}
    shapes = {name: leaf.shape for name, leaf in leaves.items()}
    slots = weight_table.slots(table, shapes, model.config.num_layers)
    if homeless := sorted(set(leaves) - set(slots)):
        hint = "; merge adapters with lora.merge_lora first" if ".lora_" in str(homeless) else ""
        problems = [f"parameter {text}{hint}" for text in weight_table.collapsed(homeless)]
        raise weight_table.WeightsError("no Hugging Face tensor holds these parameters", problems)

    def stream() -> Iterator[tuple[str, np.ndarray]]:
        for name, group in slots.items():
            array = np.asarray(leaves[name][...])
            for slot in group:
                part = array[slot.index]
                yield slot.hf, part.transpose(slot.to_hf)

    return stream()


def dotted(path: tuple[Any, ...]) -> str:
    """Return the path of a parameter as tables write it, ``layers.0.mlp.up_proj.w``."""
    return ".".join(map(str, path))


def places(state: nnx.State, mesh: Mesh | None) -> Mapping[str, Any]:
    """Return where each parameter goes: its sharding, or ``None`` for the default device.

    Raises:
        ShardingError: If the mesh does not divide a parameter.
    """
    if mesh is None:
        return {dotted(path): None for path, _ in nnx.to_flat_state(state)}
    placed = nnx.to_flat_state(sharding.state_shardings(state, mesh))
    return {dotted(path): leaf.get_raw_value() for path, leaf in placed}


def _filled(
    leaf: nnx.Variable, slots: Sequence[weight_table.Slot], source: weight_table.TensorSource
) -> np.ndarray:
    """Return one parameter, read from its tensors, in its own dtype."""
    out = aligned_empty(leaf.shape, leaf.dtype)
    for slot in slots:
        array = _floating(slot.hf, source)
        if array.dtype == ml_dtypes.bfloat16 and out.dtype != array.dtype:
            array = array.astype(out.dtype)  # 2x faster than a transposing cast
        target = out[slot.index]
        target[...] = array.transpose(slot.to_ours)
    return out


def _floating(name: str, source: weight_table.TensorSource) -> np.ndarray:
    array = source.read(name)
    if not np.issubdtype(array.dtype, np.floating) and array.dtype != ml_dtypes.bfloat16:
        problem = f"checkpoint tensor {name} holds {array.dtype}, expected floating point"
        raise weight_table.misfit(source, [problem])
    return array


def aligned_empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Return an uninitialised array that becomes a JAX CPU array without a copy."""
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + num_bytes].view(dtype).reshape(shape)


def _check_copy(
    row: weight_table.Weight,
    filled: Mapping[str, jax.Array],
    source: weight_table.TensorSource,
) -> None:
    """Raise unless a redundant tensor equals the parameter that stands for it."""
    kept = np.asarray(filled[row.copy_of or ""])
    copy = _floating(row.hf, source).astype(kept.dtype)
    if not np.array_equal(copy, kept):
        problem = (
            f"checkpoint tensor {row.hf} differs from {row.copy_of}, which the config says it is "
            "tied to; set tie_word_embeddings to false in the checkpoint's config.json"
        )
        raise weight_table.misfit(source, [problem])
