"""Keeps a model that only works now and then in host memory, and puts it on its devices for that.

What lives on the host are NumPy arrays, one per distinct shard, so a replicated array costs its
size once. No backend needs to know of host memory for this, and none limits how much of it there
is. On the CPU backend device memory *is* host memory: everything works, nothing is gained.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

ModuleT = TypeVar("ModuleT", bound=nnx.Module)


@dataclasses.dataclass(frozen=True)
class HostArray:
    """The addressable shards of an array, by their place in it."""

    shape: tuple[int, ...]
    dtype: Any
    sharding: jax.sharding.Sharding
    shards: dict[tuple[tuple[int | None, int | None], ...], np.ndarray]

    def on_device(self) -> jax.Array:
        """Return the array with the sharding it had, bit for bit."""
        return jax.make_array_from_callback(
            self.shape, self.sharding, lambda index: self.shards[_key(index)], dtype=self.dtype
        )

    @property
    def nbytes(self) -> int:
        """Bytes of host memory it takes."""
        return sum(shard.nbytes for shard in self.shards.values())


class HostOffload(Generic[ModuleT]):
    """Moves the arrays of a module between its devices and host memory.

    While they are on the host, the module's variables hold ``jax.ShapeDtypeStruct`` with shape,
    dtype and sharding, so that a use of the module fails instead of being slow in silence. Device
    memory is free once nobody else holds the arrays: a module that shares weights with another
    one gives nothing back while that one is there. Keys of random streams stay where they are.

    The structure of the module must not change between :meth:`offload` and :meth:`load`.

    Args:
        module: Nothing moves before the first call of a method.
    """

    def __init__(self, module: ModuleT):
        self._module = module
        self._copies: dict[tuple[Any, ...], tuple[jax.Array | None, HostArray]] = {}
        self._is_offloaded = False

    @property
    def is_offloaded(self) -> bool:
        """Whether the arrays are on the host."""
        return self._is_offloaded

    @property
    def nbytes(self) -> int:
        """Bytes of host memory that copies take; 0 before :meth:`offload`."""
        return sum(copy.nbytes for _, copy in self._copies.values())

    def offload(self) -> None:
        """Move the arrays to the host; what is there already and unchanged is not copied again."""
        if self._is_offloaded:
            return
        copies = {}
        for path, variable in _array_variables(self._module):
            value = variable.get_value()
            known, copy = self._copies.get(path, (None, None))
            if copy is None or known is not value:
                copy = to_host(value)
            copies[path] = (None, copy)
            variable.set_raw_value(
                jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=value.sharding)
            )
        self._copies, self._is_offloaded = copies, True

    def load(self) -> None:
        """Put the arrays back on their devices and give the host memory back."""
        self._load()
        self._copies = {}

    @contextlib.contextmanager
    def on_device(self) -> Iterator[ModuleT]:
        """Give the module with its arrays on their devices; afterwards they are where they were.

        The host copies are kept meanwhile, so the way back costs nothing unless arrays changed.
        """
        was_offloaded = self._is_offloaded
        self._load()
        try:
            yield self._module
        finally:
            if was_offloaded:
                self.offload()

    def _load(self) -> None:
        if not self._is_offloaded:
            return
        variables = _variables(self._module)
        for path, (_, copy) in self._copies.items():
            array = copy.on_device()
            variables[path].set_raw_value(array)
            self._copies[path] = (array, copy)
        self._is_offloaded = False


def _variables(module: nnx.Module) -> dict[tuple[Any, ...], nnx.Variable]:
    return {path: x for path, x in nnx.iter_graph(module) if isinstance(x, nnx.Variable)}


def _array_variables(module: nnx.Module) -> list[tuple[tuple[Any, ...], nnx.Variable]]:
    """Return the variables that hold an array, random keys aside."""
    found = []
    for path, variable in _variables(module).items():
        value = variable.get_value()
        if isinstance(value, jax.Array) and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            found.append((path, variable))
    return found


def to_host(array: jax.Array) -> HostArray:
    """Return a copy in host memory; waits until the array is computed."""
    shards = {}
    for shard in array.addressable_shards:
        key = _key(shard.index)
        if key not in shards:
            # A copy: on the CPU backend `asarray` is a view, which would keep the array alive.
            shards[key] = np.array(shard.data)
    return HostArray(array.shape, array.dtype, array.sharding, shards)


def _key(index: Any) -> tuple[tuple[int | None, int | None], ...]:
    """Return the slices of a shard as something that can be looked up."""
    return tuple((part.start, part.stop) for part in index)
