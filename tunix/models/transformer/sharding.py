"""Where parameters live: every weight names its dimensions once, one table places them."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from tunix.utils import problems as problems_lib

Rules = Mapping[str, str | None]
"""Mesh axis for every kind of dimension; ``None`` replicates it."""

FSDP_TP: Rules = {
    "layers": None,
    "vocab": "tp",
    "embed": "fsdp",
    "heads": "tp",
    "kv_heads": "tp",
    "mlp": "tp",
    "experts": "ep",
    "norm": None,
}
"""Model dimension over ``fsdp``; heads, MLP and vocabulary over ``tp``; experts over ``ep``."""


class ShardingError(problems_lib.ProblemsError):
    """Parameters that a mesh cannot hold as the rules ask, with every reason why."""

    headline = "the model does not fit the mesh"


def with_propagated_axes(mesh: Mesh) -> Mesh:
    """Return the same devices with axes along which shardings are propagated.

    ``jax.make_mesh`` makes axes whose sharding every operation must name; a model
    written for one device and for many leaves that to the compiler.
    """
    return mesh if isinstance(mesh, AbstractMesh) else Mesh(mesh.devices, mesh.axis_names)


def partition_spec(
    axes: tuple[str | None, ...], rules: Rules, mesh_shape: Mapping[str, int]
) -> PartitionSpec:
    """Return where each dimension goes; a mesh axis that the mesh lacks means replication."""
    placed = [None if axis is None else rules[axis] for axis in axes]
    return PartitionSpec(*(name if name in mesh_shape else None for name in placed))


def state_shardings(state: nnx.State, mesh: Mesh, rules: Rules = FSDP_TP) -> Any:
    """Return a tree of ``NamedSharding`` shaped like ``state``.

    Raises:
        ShardingError: Listing every parameter whose dimension a mesh axis does not divide.
    """
    mesh = with_propagated_axes(mesh)
    problems: list[str] = []
    placed = []
    for path, variable in nnx.to_flat_state(state):
        shape = variable.shape
        axes = variable.get_metadata().get("logical_axes", (None,) * len(shape))
        axes = ("layers",) * (len(shape) - len(axes)) + tuple(axes)  # stacked layers lead
        spec = partition_spec(axes, rules, mesh.shape)
        problems += _indivisible(".".join(map(str, path)), shape, axes, spec, mesh.shape)
        placed.append((path, variable.replace(NamedSharding(mesh, spec))))
    if problems:
        raise ShardingError(problems)
    return nnx.from_flat_state(placed)


def shard_model(model: nnx.Module, mesh: Mesh, rules: Rules = FSDP_TP) -> None:
    """Move the model's parameters to ``mesh`` in place, as the rules say."""
    state = nnx.state(model)
    nnx.update(model, jax.device_put(state, state_shardings(state, mesh, rules)))


def _indivisible(
    path: str,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    spec: PartitionSpec,
    mesh_shape: Mapping[str, int],
) -> Iterator[str]:
    for size, axis, mesh_axis in zip(shape, axes, spec, strict=True):
        if mesh_axis is not None and size % mesh_shape[mesh_axis]:
            yield (
                f"{path}: {axis} has size {size}, which mesh axis {mesh_axis!r} of size "
                f"{mesh_shape[mesh_axis]} does not divide; map {axis!r} to None to replicate it"
            )
