"""Which models are on their devices: those in use, and of the others what nobody's way needs.

With ``offload_to_cpu``, a model that is used first sends home whatever is idle on the same
devices: to host memory, from where it comes back bit for bit. What stands alone on its devices
stays there.
"""

import contextlib
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from tunix.rl import reshard
from tunix.sft import host_offload


class Part(Protocol):
    """Arrays that move together."""

    @property
    def devices(self) -> frozenset[reshard.Device]:
        """Where they are while they are in use."""
        ...

    def offload(self) -> None:
        """Move them to host memory."""
        ...

    def load(self) -> None:
        """Move them back."""
        ...


class ArrayPart:
    """Arrays of whoever lets them be read and replaced.

    While they are away, their owner holds ``jax.ShapeDtypeStruct`` in their place, with which no
    computation starts. An array that has not changed since it came back is not copied again.

    Args:
        read: Returns a tree of arrays. Keys of random streams stay where they are.
        write: Takes the same tree with other leaves.
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], None]):
        self._read, self._write = read, write
        leaves = [x for x in jax.tree.leaves(read()) if isinstance(x, jax.Array)]
        self._devices = frozenset(d for x in leaves for d in x.devices())
        self._copies: list[host_offload.HostArray | None] = []
        self._arrays: list[weakref.ref[jax.Array] | None] = []

    @property
    def devices(self) -> frozenset[reshard.Device]:
        """Where the arrays are while they are in use."""
        return self._devices

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory that copies take."""
        return sum(copy.nbytes for copy in self._copies if copy is not None)

    def offload(self) -> None:
        """Move the arrays to host memory; waits until they are computed."""
        leaves, structure = jax.tree.flatten(self._read())
        known = self._known(len(leaves))
        self._copies = [self._copy(x, *was) for x, was in zip(leaves, known, strict=True)]
        kept = zip(leaves, self._copies, strict=True)
        absent = [x if copy is None else _absent(x) for x, copy in kept]
        self._write(jax.tree.unflatten(structure, absent))

    def load(self) -> None:
        """Move the arrays back to their devices."""
        leaves, structure = jax.tree.flatten(self._read())
        back = zip(leaves, self._copies, strict=True)
        present = [x if copy is None else copy.on_device() for x, copy in back]
        self._arrays = [
            None if copy is None else weakref.ref(x)
            for x, copy in zip(present, self._copies, strict=True)
        ]
        self._write(jax.tree.unflatten(structure, present))

    def _known(self, count: int) -> list[tuple[jax.Array | None, host_offload.HostArray | None]]:
        if len(self._arrays) != count:
            return [(None, None)] * count
        pairs = zip(self._arrays, self._copies, strict=True)
        return [(None if array is None else array(), copy) for array, copy in pairs]

    def _copy(
        self, x: Any, known: jax.Array | None, copy: host_offload.HostArray | None
    ) -> host_offload.HostArray | None:
        if not isinstance(x, jax.Array) or jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return None
        return copy if copy is not None and known is x else host_offload.to_host(x)


class Residency:
    """Brings parts to their devices when they are used, and takes idle ones out of the way.

    Safe to use from several threads: what any of them uses stays.

    Args:
        parts: All parts by name; none if nothing ever moves.
        needs: Parts that a part cannot be used without.
    """

    def __init__(self, parts: Mapping[str, Part], needs: Mapping[str, Sequence[str]] | None = None):
        self._parts, self._needs = dict(parts), dict(needs or {})
        self._users: Counter[str] = Counter()
        self._away: set[str] = set()
        self._lock = threading.Lock()

    @property
    def away(self) -> frozenset[str]:
        """Names of the parts that are in host memory."""
        return frozenset(self._away)

    @contextlib.contextmanager
    def use(self, *names: str, replacing: str | None = None) -> Iterator[None]:
        """Have parts on their devices.

        Args:
            names: Parts; those that there are none of take no place.
            replacing: A part whose owner gets new arrays meanwhile: its old ones stay away.
        """
        named = {other for name in names for other in (name, *self._needs.get(name, ()))}
        wanted = sorted(named & self._parts.keys())
        filled = [replacing] if replacing in self._parts else []
        with self._lock:
            self._make_room({*wanted, *filled})
            for name in wanted:
                if name in self._away:
                    self._parts[name].load()
            self._away -= {*wanted, *filled}
            self._users.update([*wanted, *filled])
        try:
            yield
        finally:
            with self._lock:
                self._users.subtract([*wanted, *filled])

    def _make_room(self, wanted: set[str]) -> None:
        devices = frozenset(d for name in wanted for d in self._parts[name].devices)
        for name, part in self._parts.items():
            is_idle = name not in wanted and name not in self._away and not self._users[name]
            if is_idle and devices & part.devices:
                part.offload()
                self._away.add(name)


def _absent(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
