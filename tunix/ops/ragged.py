"""Products of rows with the matrix of their group: what the experts of a mixture compute.

Rows come sorted by group, so every group is one block of rows, possibly empty. Only rows and
matrices that belong together are multiplied: the work grows with the rows, not with the groups.
XLA:CPU lowers ``jax.lax.ragged_dot`` to a product of all rows with all matrices, so there a loop
over tiles of rows takes its place. Precisions as in :mod:`tunix.ops.dot`.

Axes: ``M`` rows, ``G`` groups, ``K`` width of the rows, ``N`` width of the products.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tunix.ops import dot as dot_lib

_TILE_ROWS = (8, 128)
"""Fewest and most rows of a tile: fewer waste a read of the matrix, more waste products."""


def ragged_dot(
    x: Float[Array, "M K"],
    w: Float[Array, "G K N"],
    group_sizes: Int[Array, " G"],
    *,
    precision: dot_lib.Precision,
) -> Float[Array, "M N"]:
    """Return ``x[i] @ w[g]`` for the group ``g`` of every row ``i``, in float32.

    Args:
        x: Rows, those of the first group first.
        w: One matrix a group.
        group_sizes: How many rows each group has; they sum to ``M``.
        precision: Of the products; the cotangents have the dtypes of ``x`` and ``w``.
    """
    return _ragged(x, w, group_sizes, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _ragged(x: Array, w: Array, sizes: Array, precision: dot_lib.Precision) -> Array:
    return _rows_by_group(x, w, sizes, precision, transpose=False)


def _ragged_fwd(x, w, sizes, precision):
    return _rows_by_group(x, w, sizes, precision, transpose=False), (x, w, sizes)


def _ragged_bwd(precision, residuals, g):
    x, w, sizes = residuals
    dx = _rows_by_group(g, w, sizes, precision, transpose=True)
    dw = _outer_by_group(x, g, sizes, precision)
    return dx.astype(x.dtype), dw.astype(w.dtype), None


_ragged.defvjp(_ragged_fwd, _ragged_bwd)


def _rows_by_group(
    x: Array, w: Array, sizes: Array, precision: dot_lib.Precision, *, transpose: bool
) -> Array:
    """Return every row times its group's matrix, or times the transpose of it."""
    if jax.default_backend() == "cpu":
        return _rows_by_tile(x, w, sizes, precision, transpose=transpose)
    return _native(x, jnp.swapaxes(w, 1, 2) if transpose else w, sizes, precision)


def _outer_by_group(x: Array, g: Array, sizes: Array, precision: dot_lib.Precision) -> Array:
    """Return ``x[rows].T @ g[rows]`` of every group's rows, ``[G, K, N]``."""
    if jax.default_backend() == "cpu":
        return _outer_by_tile(x, g, sizes, precision)
    return _native_outer(x, g, sizes, precision)


class _Tiles(NamedTuple):
    """Blocks of rows that lie in one group each; all but a group's last are full."""

    group: Int[Array, " S"]
    start: Int[Array, " S"]
    """First row."""
    end: Int[Array, " S"]
    """End of the group: rows of the tile from here on belong to others."""
    number: Int[Array, ""]
    """How many tiles there are; the rest of the arrays means nothing."""


def tile_rows(num_rows: int, num_groups: int) -> int:
    """Return how many rows a tile has: the half of a mean group, as a power of two."""
    low, high = _TILE_ROWS
    half = max(1, num_rows // (2 * num_groups))
    return min(high, max(low, 1 << (half.bit_length() - 1)))


def _tiles(sizes: Int[Array, " G"], num_rows: int, tile: int) -> _Tiles:
    num_groups = sizes.shape[0]
    per_group = -(-sizes // tile)
    last = jnp.cumsum(per_group)
    index = jnp.arange(num_rows // tile + min(num_rows, num_groups))
    group = jnp.minimum(jnp.searchsorted(last, index, side="right"), num_groups - 1)
    ends = jnp.cumsum(sizes)
    first_row, first_tile = (ends - sizes)[group], (last - per_group)[group]
    start = first_row + (index - first_tile) * tile
    return _Tiles(group=group, start=start, end=ends[group], number=last[-1])


def _rows_by_tile(
    x: Array, w: Array, sizes: Array, precision: dot_lib.Precision, *, transpose: bool
) -> Array:
    num_rows, tile = x.shape[0], tile_rows(x.shape[0], w.shape[0])
    tiles = _tiles(sizes, num_rows, tile)
    x = jnp.pad(x, ((0, tile), (0, 0)))
    product = dot_lib.dot_nt if transpose else dot_lib.dot

    def body(i: Array, y: Array) -> Array:
        rows = jax.lax.dynamic_slice_in_dim(x, tiles.start[i], tile)
        # Rows of later groups are wrong, until the tiles of those groups overwrite them.
        new = product(rows, _matrix(w, tiles.group[i]), precision=precision)
        return jax.lax.dynamic_update_slice_in_dim(y, new, tiles.start[i], 0)

    y = jnp.zeros((num_rows + tile, w.shape[1 if transpose else 2]), jnp.float32)
    return jax.lax.fori_loop(0, tiles.number, body, y)[:num_rows]


def _matrix(w: Float[Array, "G K N"], group: Int[Array, ""]) -> Float[Array, "K N"]:
    """Return one matrix, within a loop.

    XLA:CPU widens bfloat16 before it slices, and all matrices at once ahead of the loop. Their
    bits it slices as they are, if a barrier keeps it from taking those out of the loop.
    """
    if w.dtype != jnp.bfloat16:
        return jax.lax.dynamic_index_in_dim(w, group, keepdims=False)
    w, group = jax.lax.optimization_barrier((w, group))
    bits = jax.lax.bitcast_convert_type(w, jnp.uint16)
    matrix = jax.lax.dynamic_index_in_dim(bits, group, keepdims=False)
    return jax.lax.bitcast_convert_type(matrix, jnp.bfloat16)


def _outer_by_tile(x: Array, g: Array, sizes: Array, precision: dot_lib.Precision) -> Array:
    num_rows, num_groups = x.shape[0], sizes.shape[0]
    tile = tile_rows(num_rows, num_groups)
    tiles = _tiles(sizes, num_rows, tile)
    x, g = (jnp.pad(rows, ((0, tile), (0, 0))) for rows in (x, g))

    def body(i: Array, dw: Array) -> Array:
        start, group = tiles.start[i], tiles.group[i]
        is_own = start + jnp.arange(tile) < tiles.end[i]
        rows = jax.lax.dynamic_slice_in_dim(x, start, tile) * is_own[:, None]
        cotangents = jax.lax.dynamic_slice_in_dim(g, start, tile)
        new = dot_lib.dot(dot_lib.transposed(rows), cotangents, precision=precision)
        new += jax.lax.dynamic_index_in_dim(dw, group, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(dw, new, group, 0)

    dw = jnp.zeros((num_groups, x.shape[1], g.shape[1]), jnp.float32)
    return jax.lax.fori_loop(0, tiles.number, body, dw)


def _native(x: Array, w: Array, sizes: Array, precision: dot_lib.Precision) -> Array:
    """Return the products from the operation that accelerators have."""
    x, w = _operands(x, w, precision)
    return jax.lax.ragged_dot(
        x, w, sizes, precision=_lax_precision(precision), preferred_element_type=jnp.float32
    )


def _native_outer(x: Array, g: Array, sizes: Array, precision: dot_lib.Precision) -> Array:
    x, g = _operands(x, g, precision)
    dimensions = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())),
        lhs_ragged_dimensions=[0],
        rhs_group_dimensions=[],
    )
    return jax.lax.ragged_dot_general(
        x,
        g,
        sizes,
        dimensions,
        precision=_lax_precision(precision),
        preferred_element_type=jnp.float32,
    )


def _operands(a: Array, b: Array, precision: dot_lib.Precision) -> tuple[Array, Array]:
    dtype = jnp.float32 if precision == "exact" else jnp.bfloat16
    return a.astype(dtype), b.astype(dtype)


def _lax_precision(precision: dot_lib.Precision) -> jax.lax.Precision | None:
    return jax.lax.Precision.HIGHEST if precision == "exact" else None
