"""Placing batches on a mesh: the rows of a batch are split over the data axes."""

import logging
import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tunix.utils import tree as tree_lib

_LOG = logging.getLogger(__name__)


def mesh_of(arrays: Any) -> Mesh | None:
    """Return the mesh of more than one device that ``arrays`` live on, or ``None``."""
    for leaf in jax.tree.leaves(arrays):
        if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding):
            mesh = leaf.sharding.mesh
            if isinstance(mesh, Mesh) and mesh.size > 1:
                return mesh
    return None


def active_mesh() -> Mesh | None:
    """Return the mesh of more than one device set with ``jax.set_mesh``, or ``None``."""
    mesh = jax.sharding.get_mesh()
    return mesh if mesh.size > 1 else None


def get_sharding(x: Any, mesh: Mesh, pspec: PartitionSpec) -> NamedSharding:
    """Return the sharding of a batch array: ``pspec`` for its rows, scalars everywhere."""
    return NamedSharding(mesh, pspec if x.ndim else PartitionSpec())


def shard_input(
    input_data: Any,
    data_sharding_axis: tuple[str, ...],
    *,
    mesh: Mesh | None = None,
    replicate_uneven: bool = False,
) -> Any:
    """Return ``input_data`` with the first dimension of every array split over the mesh.

    Args:
        input_data: Pytree of arrays whose first dimension is the batch.
        data_sharding_axis: Mesh axes to split over.
        mesh: The mesh; by default the one set with ``jax.set_mesh``. Without any, or with a
            single device, the data is returned as it is.
        replicate_uneven: Whether an array whose rows do not divide is put on every device (and
            reported) instead of refused: exact, only slower. Meant for a last short batch.

    Raises:
        ValueError: If the mesh lacks an axis, or a number of rows does not divide.
    """
    mesh = active_mesh() if mesh is None else mesh
    if mesh is None:
        return input_data
    if missing := [axis for axis in data_sharding_axis if axis not in mesh.shape]:
        raise ValueError(
            f"data_sharding_axis {missing} is not an axis of the mesh, which has "
            f"{list(mesh.shape)}; set data_sharding_axis to the axes that split the batch"
        )
    spec = PartitionSpec(data_sharding_axis)
    parts = math.prod(mesh.shape[axis] for axis in data_sharding_axis)

    def place(path: tuple[Any, ...], x: Any) -> Any:
        sharding = get_sharding(x, mesh, spec)
        if x.ndim and x.shape[0] % parts:
            message = (
                f"{tree_lib.path_name(path)} has {x.shape[0]} rows, which mesh axes "
                f"{list(data_sharding_axis)} of size {parts} do not divide"
            )
            if not replicate_uneven:
                raise ValueError(
                    f"{message}; change the batch size, drop the short batch, or pad it with rows "
                    "of weight 0"
                )
            _LOG.warning("%s; it is computed on every device", message)
            sharding = NamedSharding(mesh, PartitionSpec())
        return jax.device_put(x, sharding)

    return jax.tree.map_with_path(place, input_data)
