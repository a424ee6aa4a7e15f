"""Moves arrays between meshes: a device receives what it lacks, and nothing else.

Every shard that a device is to hold is cut into what lies in its own memory already and what does
not. What does not is sliced out of shards of the source, sent from device to device, and put
together where it belongs. No array is whole on one device, or on the host, unless the target asks
for it.

Works within one process. Devices of other processes need a transfer service, which this is not.
"""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, Sharding
from jaxtyping import PyTree

from tunix.models.transformer import sharding as sharding_lib

Device = Any
"""A ``jax.Device``, which type checkers take for a variable."""

Box = tuple[tuple[int, int], ...]
"""A block of an array: start and stop of every dimension."""


@dataclasses.dataclass(frozen=True)
class Moved:
    """What a resharding sent from one device to another."""

    received: Mapping[Device, int]
    """Bytes by the device that received them."""

    @property
    def bytes_moved(self) -> int:
        """Bytes sent between devices, all together."""
        return sum(self.received.values())


def reshard_pytree(source: PyTree, target: PyTree) -> PyTree:
    """Return the arrays of ``source`` where ``target`` says, bit for bit.

    As with ``jax.device_put``, an array may share memory with the source where a shard stays as
    it is: copy before you donate either.

    Args:
        source: A tree of ``jax.Array``.
        target: A tree of the same structure with a sharding for every array, or an array or
            ``jax.ShapeDtypeStruct`` that has one.

    Raises:
        ValueError: If an array has shards in another process.
    """
    return reshard_and_measure(source, target)[0]


def reshard_and_measure(source: PyTree, target: PyTree) -> tuple[PyTree, Moved]:
    """Return what :func:`reshard_pytree` does, and what had to be sent for it."""
    received: Counter[Device] = Counter()
    moved = jax.tree.map(lambda x, to: _reshard(x, _sharding_of(to), received), source, target)
    return moved, Moved(dict(received))


def bytes_lacking(source: PyTree, target: PyTree) -> int:
    """Return how many bytes the devices of ``target`` lack: the least that can be sent."""

    def lacking(x: jax.Array, to: Any) -> int:
        held, wanted = _boxes(x.sharding, x.shape), _boxes(_sharding_of(to), x.shape)
        elements = 0
        for device, box in wanted.items():
            own = _overlap(held[device], box) if device in held else None
            elements += _size(box) - (0 if own is None else _size(own))
        return elements * _itemsize(x)

    return sum(jax.tree.leaves(jax.tree.map(lacking, source, target)))


def reshard_model_to_mesh(model: nnx.Module, mesh: Mesh) -> nnx.Module:
    """Return a copy of the model on ``mesh``, placed by the names of its dimensions.

    Raises:
        ShardingError: If the mesh cannot hold it.
    """
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, reshard_pytree(state, sharding_lib.state_shardings(state, mesh)))


def _sharding_of(target: Any) -> Sharding:
    sharding = target if isinstance(target, Sharding) else target.sharding
    if not isinstance(sharding, Sharding):
        raise TypeError(f"the target {target!r} does not say where the array goes")
    return sharding


def _reshard(x: jax.Array, target: Sharding, received: Counter[Device]) -> jax.Array:
    if x.sharding == target:
        return x
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _reshard(jax.random.key_data(x), target, received)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    if not (x.is_fully_addressable and target.is_fully_addressable):
        raise ValueError("arrays are moved between meshes within one process only")
    if x.size == 0:
        return jax.device_put(x, target)
    shards = {shard.device: shard.data for shard in x.addressable_shards}
    held = _boxes(x.sharding, x.shape)
    holders: dict[Box, list[Device]] = {}
    for device, box in held.items():
        holders.setdefault(box, []).append(device)
    sent: Counter[Device] = Counter()
    parts = []
    for device, box in _boxes(target, x.shape).items():
        pieces = []
        for part, owner in _sources(device, box, held, holders, sent):
            piece = _cut(shards[owner], held[owner], part)
            if owner != device:
                received[device] += piece.nbytes
                sent[owner] += piece.nbytes
                piece = jax.device_put(piece, device)
            pieces.append((part, piece))
        parts.append(_assembled(box, pieces))
    return jax.make_array_from_single_device_arrays(x.shape, target, parts)


def _boxes(sharding: Sharding, shape: tuple[int, ...]) -> dict[Device, Box]:
    """Return the block of an array that every device holds."""
    return {
        device: tuple(part.indices(size)[:2] for part, size in zip(index or (), shape, strict=True))
        for device, index in sharding.devices_indices_map(shape).items()
    }


def _sources(
    device: Device,
    box: Box,
    held: Mapping[Device, Box],
    holders: Mapping[Box, list[Device]],
    sent: Mapping[Device, int],
) -> Iterator[tuple[Box, Device]]:
    """Yield blocks that make up ``box``, each with a device that has it; what is here first."""
    rest = [box]
    own = _overlap(held[device], box) if device in held else None
    if own is not None:
        yield own, device
        rest = list(_without(box, own))
    for piece in rest:
        for block, owners in holders.items():
            part = _overlap(block, piece)
            if part is not None:
                # Replicas share the sending.
                yield part, min(owners, key=lambda owner: sent[owner])


def _overlap(a: Box, b: Box) -> Box | None:
    """Return what two blocks have in common, ``None`` if nothing."""
    both = tuple((max(p[0], q[0]), min(p[1], q[1])) for p, q in zip(a, b, strict=True))
    return both if all(start < stop for start, stop in both) else None


def _without(box: Box, inner: Box) -> Iterator[Box]:
    """Yield blocks that make up ``box`` less ``inner``, which lies in it."""
    for axis, ((start, stop), (low, high)) in enumerate(zip(box, inner, strict=True)):
        head, tail = inner[:axis], box[axis + 1 :]
        if start < low:
            yield (*head, (start, low), *tail)
        if high < stop:
            yield (*head, (high, stop), *tail)


def _size(box: Box) -> int:
    return math.prod(stop - start for start, stop in box)


def _itemsize(x: jax.Array) -> int:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(x).nbytes // max(x.size, 1)
    return x.dtype.itemsize


def _cut(shard: jax.Array, held: Box, part: Box) -> jax.Array:
    """Return the block ``part`` of a shard that holds the block ``held``."""
    if part == held:
        return shard
    starts = tuple(p[0] - h[0] for p, h in zip(part, held, strict=True))
    return _slice(shard, starts, sizes=tuple(stop - start for start, stop in part))


def _assembled(box: Box, pieces: list[tuple[Box, jax.Array]]) -> jax.Array:
    if len(pieces) == 1:
        return pieces[0][1]
    starts = [tuple(p[0] - b[0] for p, b in zip(part, box, strict=True)) for part, _ in pieces]
    shape = tuple(stop - start for start, stop in box)
    return _join([piece for _, piece in pieces], starts, shape=shape)


@functools.partial(jax.jit, static_argnames="sizes")
def _slice(x: jax.Array, starts: tuple[int, ...], *, sizes: tuple[int, ...]) -> jax.Array:
    return jax.lax.dynamic_slice(x, starts, sizes)


@functools.partial(jax.jit, static_argnames="shape")
def _join(
    pieces: list[jax.Array], starts: list[tuple[int, ...]], *, shape: tuple[int, ...]
) -> jax.Array:
    joined = jnp.zeros(shape, pieces[0].dtype)
    for piece, start in zip(pieces, starts, strict=True):
        joined = jax.lax.dynamic_update_slice(joined, piece, start)
    return joined
