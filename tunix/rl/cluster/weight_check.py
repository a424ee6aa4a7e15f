"""Tells whether a rollout samples from the actor's weights, without moving either."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, UInt32

from tunix.models.transformer import adapter, layout
from tunix.utils import problems as problems_lib


class WeightSyncError(problems_lib.ProblemsError):
    """A rollout has other weights than the actor, with every one that differs."""

    headline = "after the sync the rollout does not have the actor's weights"


def check(actor: nnx.State, rollout: nnx.State) -> None:
    """Compare checksums of all parameters, each computed where the parameter lives.

    The actor's are cast to the rollout's dtypes first, and its stacked layers taken apart. A
    checksum notices every change of a single element, and any other but for one in 2^32.

    Args:
        actor: The weights that are trained.
        rollout: Those that are sampled from, layers unrolled or as in the actor.

    Raises:
        WeightSyncError: Listing every parameter that is missing, misshapen or different.
    """
    held = _parameters(rollout)
    expected = _parameters(actor)
    if expected.keys() != held.keys():
        expected = _parameters(jax.eval_shape(layout.unroll_state, actor))
    problems = [f"{name} is missing" for name in sorted(expected.keys() - held.keys())]
    problems += [f"{name} is not the actor's" for name in sorted(held.keys() - expected.keys())]
    common = sorted(expected.keys() & held.keys())
    problems += [
        f"{name} has shape {held[name].shape}, the actor's has {expected[name].shape}"
        for name in common
        if held[name].shape != expected[name].shape
    ]
    if problems:
        raise WeightSyncError(problems)
    dtypes = {name: held[name].dtype for name in common}
    want, found = jax.device_get((_actor_checksums(actor, tuple(dtypes.items())), _checksums(held)))
    differing = [name for name in common if want[name] != found[name]]
    if differing:
        raise WeightSyncError([f"{name} has other values" for name in differing])


def _parameters(state: nnx.State) -> dict[str, Any]:
    return {
        ".".join(map(str, path)): leaf.get_value()
        for path, leaf in nnx.to_flat_state(state)
        if isinstance(leaf, nnx.Param | adapter.Frozen)
    }


@functools.partial(jax.jit, static_argnames="dtypes")
def _actor_checksums(
    actor: nnx.State, dtypes: tuple[tuple[str, Any], ...]
) -> dict[str, UInt32[Array, ""]]:
    parameters = _parameters(actor)
    if parameters.keys() != dict(dtypes).keys():
        parameters = _parameters(layout.unroll_state(actor))
    return {name: checksum(parameters[name].astype(dtype)) for name, dtype in dtypes}


@jax.jit
def _checksums(arrays: dict[str, jax.Array]) -> dict[str, UInt32[Array, ""]]:
    return jax.tree.map(checksum, arrays)


def checksum(x: Array) -> UInt32[Array, ""]:
    """Return the sum of a hash of every element and its place, modulo 2^32.

    The order of the sum does not matter, so neither does how the array is split over devices. The
    hash is needed: a sum of plain bits does not notice that an even number of signs changed.
    """
    bits = x.astype(jnp.int32) if jnp.issubdtype(x.dtype, jnp.integer) else _bits(x)
    place, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        place = place + index * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return jnp.sum(_mixed(bits.astype(jnp.uint32) + _mixed(place)), dtype=jnp.uint32)


def _mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Return the finaliser of MurmurHash3 (Appleby, 2011): a permutation of all 32-bit numbers."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _bits(x: Array) -> Array:
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    return jax.lax.bitcast_convert_type(x, unsigned)
