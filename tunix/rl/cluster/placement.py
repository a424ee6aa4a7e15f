"""Moves models to the devices they are to live on."""

from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from tunix.models.transformer import sharding as sharding_lib
from tunix.rl import reshard
from tunix.sft import place as place_lib


class Mover:
    """Moves models to meshes in place; arrays that two of them share stay shared."""

    def __init__(self):
        self._moved: dict[tuple[int, Any], tuple[jax.Array, jax.Array]] = {}

    def move(self, model: nnx.Module, mesh: Mesh | None) -> None:
        """Move a model to a mesh, unless it lives there already or no mesh is given.

        Raises:
            ShardingError: If the mesh cannot hold it.
        """
        if mesh is None or lives_on(model, mesh):
            return
        state = nnx.state(model)
        targets = sharding_lib.state_shardings(state, mesh)
        nnx.update(model, jax.tree.map(self._moved_once, state, targets))

    def _moved_once(self, x: jax.Array, target: NamedSharding) -> jax.Array:
        key = id(x), target
        if key not in self._moved:
            # The original is kept, too: an id means nothing once its owner is gone.
            self._moved[key] = x, reshard.reshard_pytree(x, target)
        return self._moved[key][1]


def lives_on(model: nnx.Module, mesh: Mesh) -> bool:
    """Return whether a model's arrays are arranged on ``mesh``, or on its only device."""
    place = place_lib.Place.of(model, ())
    if mesh.size == 1:
        return place.devices == set(mesh.devices.flat)
    return place.mesh == mesh
