"""Which devices a model lives on, and how what it reads and says gets there and back."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from tunix.sft import sharding_utils


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the arrays of a model are.

    It is looked up once: a model in host memory does not say.
    """

    devices: frozenset[Any]
    mesh: Mesh | None
    """The mesh, if it has several devices."""
    data_axes: tuple[str, ...]
    """Axes of the mesh that the rows of a batch are split over; none where it has none of them."""

    @classmethod
    def of(cls, model: nnx.Module, data_sharding_axis: Iterable[str]) -> "Place":
        """Return where a model is.

        Args:
            model: All its arrays are on the same devices.
            data_sharding_axis: Axes that the rows of a batch are split over, where there are such.
        """
        arrays = [x for x in jax.tree.leaves(nnx.state(model)) if isinstance(x, jax.Array)]
        mesh = sharding_utils.mesh_of(arrays)
        axes = tuple(axis for axis in data_sharding_axis if mesh is not None and axis in mesh.shape)
        return cls(frozenset(d for x in arrays for d in x.devices()), mesh, axes)

    @property
    def data_parallelism(self) -> int:
        """How many parts the rows of a batch are split into."""
        if self.mesh is None:
            return 1
        parts = 1
        for axis in self.data_axes:
            parts *= self.mesh.shape[axis]
        return parts

    def put(self, batch: Any) -> Any:
        """Return a batch here, its rows split over the data axes where they divide.

        Arrays that live on other devices are moved; those of the host that nothing commits to a
        device are left to the compiled function where there is only one device.
        """
        if self.mesh is not None:
            return sharding_utils.shard_input(
                batch, self.data_axes, mesh=self.mesh, replicate_uneven=True
            )
        (device,) = self.devices
        return jax.tree.map(
            lambda x: (
                jax.device_put(x, device)
                if isinstance(x, jax.Array) and x.devices() != {device}
                else x
            ),
            batch,
        )

    def fetch(self, batch: Any) -> Any:
        """Return a batch of which no array is on other devices; what is not on any is left alone.

        Arrays that arrive have their rows split as in :meth:`put`.
        """
        return jax.tree.map(
            lambda x: (
                self.put(x) if isinstance(x, jax.Array) and x.devices() != self.devices else x
            ),
            batch,
        )
