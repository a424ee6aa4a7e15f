"""Frozen weight matrices in four or eight bits, and back.

Axes: ``K`` rows (contracted by a product), ``N`` columns, ``G`` blocks of consecutive rows. Every
block of a column has one scale, the largest magnitude in it. Leading axes are batched. Nothing
here knows about models or layers.
"""

import functools
import itertools
import statistics
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, UInt8

Kind = Literal["nf4", "int8", "int4"]
KINDS: tuple[Kind, ...] = ("nf4", "int8", "int4")

DEFAULT_BLOCK: dict[Kind, int | None] = {"nf4": 64, "int8": None, "int4": 64}
"""Rows of a block; ``None`` is the whole column, one scale per output channel."""

_SCALE_BLOCK = 256  # scales that share a scale of their own (arXiv:2305.14314, section 3)
_INT4_ZERO = 8  # nibbles are unsigned: code 8 is zero


@flax.struct.dataclass
class Quantized:
    """A matrix in few bits; see :func:`quantize` for what the codes mean."""

    # Not typed by shape: pytree operations put anything in place of the arrays.
    codes: Any
    """``[*s, K, N]`` int8 for ``int8``; else ``[*s, K / 2, N]`` uint8, row ``2 i`` in the low
    four bits of row ``i``."""
    scales: Any
    """``[*s, G, N]``: float32, for ``nf4`` the int8 codes of scales."""
    scale_blocks: Any
    """``[*s, G, M]`` float32, for ``nf4``: unit of the codes of 256 neighbouring scales of a row,
    ``M = ceil(N / 256)``."""
    scale_offset: Any
    """``[*s]`` float32, for ``nf4``: mean of all scales."""
    kind: Kind = flax.struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix, leading axes included."""
        *lead, rows, columns = self.codes.shape
        return (*lead, rows if self.kind == "int8" else 2 * rows, columns)

    @property
    def num_bytes(self) -> int:
        """Size of all arrays."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))


@functools.cache
def nf4_values() -> tuple[float, ...]:
    """Return the 16 values of NormalFloat4, ascending from -1 to 1 (arXiv:2305.14314, section 3).

    They are quantiles of a standard normal: eight for the negative side, nine for the positive
    one, which share zero. The outermost probability is halfway between those at which a side
    of 15 and one of 16 intervals would be cut.
    """
    outermost = 0.5 * ((1 - 1 / 32) + (1 - 1 / 30))
    quantile = statistics.NormalDist().inv_cdf

    def side(steps: int) -> list[float]:
        """Return ``steps`` quantiles from the outermost inwards, zero left out."""
        step = (outermost - 0.5) / steps
        return [quantile(outermost - i * step) for i in range(steps)]

    negative, positive = side(7), side(8)
    largest = positive[0]
    values = [-v for v in negative] + [0.0] + positive[::-1]
    return tuple(v / largest for v in values)


def problem(shape: tuple[int, ...], kind: Kind, block: int | None = None) -> str | None:
    """Return why a matrix of this shape cannot be quantised so, or ``None`` if it can."""
    rows = shape[-2]
    block = block or DEFAULT_BLOCK[kind] or rows
    if rows % block:
        return f"{rows} rows are not a multiple of the block size {block}"
    if kind != "int8" and rows % 2:
        return f"{rows} rows are odd, and {kind} stores rows in pairs"
    return None


def quantize(w: Float[Array, "*s K N"], kind: Kind, block: int | None = None) -> Quantized:
    """Return ``w`` in few bits.

    - ``nf4``: the nearest of :func:`nf4_values` times the scale. Scales are stored as 8-bit
      integers around their mean ("double quantisation").
    - ``int8``: integers from -127 to 127 times the scale over 127.
    - ``int4``: integers from -7 to 7 times the scale over 7.

    Args:
        w: The matrix; it is read in float32.
        kind: The code.
        block: Rows of a block; :data:`DEFAULT_BLOCK` of the kind by default.

    Raises:
        ValueError: If the rows do not divide into blocks.
    """
    if (reason := problem(w.shape, kind, block)) is not None:
        raise ValueError(f"cannot quantise a matrix of shape {w.shape} to {kind}: {reason}")
    *lead, rows, columns = w.shape
    blocks = rows // (block or DEFAULT_BLOCK[kind] or rows)
    tiles = w.astype(jnp.float32).reshape(*lead, blocks, rows // blocks, columns)
    largest = jnp.abs(tiles).max(axis=-2)
    unit = tiles / jnp.where(largest > 0, largest, 1.0)[..., None, :]
    if kind == "nf4":
        codes = _pack(_nf4_codes(unit).reshape(w.shape))
        scales, scale_blocks, offset = _quantize_scales(largest)
        return Quantized(codes, scales, scale_blocks, offset, kind)
    steps = 127 if kind == "int8" else 7
    integers = jnp.round(unit * steps).astype(jnp.int8).reshape(w.shape)
    codes = integers if kind == "int8" else _pack((integers + _INT4_ZERO).astype(jnp.uint8))
    return Quantized(codes, largest / steps, None, None, kind)


@jax.jit
def dequantize(q: Quantized) -> Float[Array, "*s K N"]:
    """Return the matrix that the codes stand for, in float32."""
    shape = q.shape
    *lead, rows, columns = shape
    if q.kind == "nf4":
        table = jnp.asarray(nf4_values(), jnp.float32)
        unit = table.at[_unpack(q.codes)].get(mode="promise_in_bounds")
        scales = _dequantize_scales(q)
    elif q.kind == "int8":
        unit, scales = q.codes.astype(jnp.float32), q.scales
    else:
        unit, scales = _unpack(q.codes).astype(jnp.float32) - _INT4_ZERO, q.scales
    blocks = scales.shape[-2]
    tiles = unit.reshape(*lead, blocks, rows // blocks, columns) * scales[..., None, :]
    return tiles.reshape(shape)


def _nf4_codes(unit: Float[Array, "*s"]) -> UInt8[Array, "*s"]:
    values = nf4_values()
    middles = [(low + high) / 2 for low, high in itertools.pairwise(values)]
    table = jnp.asarray(middles, jnp.float32)
    return jnp.searchsorted(table, unit, method="compare_all").astype(jnp.uint8)


def _quantize_scales(
    scales: Float[Array, "*s G N"],
) -> tuple[Int8[Array, "*s G N"], Float[Array, "*s G M"], Float[Array, "*s"]]:
    offset = scales.mean(axis=(-2, -1))
    centred = scales - offset[..., None, None]
    columns = scales.shape[-1]
    padding = [(0, 0)] * (scales.ndim - 1) + [(0, -columns % _SCALE_BLOCK)]
    groups = jnp.pad(jnp.abs(centred), padding)
    groups = groups.reshape(*scales.shape[:-1], -1, _SCALE_BLOCK)
    units = groups.max(axis=-1) / 127
    spread = _spread(jnp.where(units > 0, units, 1.0), columns)
    return jnp.round(centred / spread).astype(jnp.int8), units, offset


def _dequantize_scales(q: Quantized) -> Float[Array, "*s G N"]:
    assert q.scale_blocks is not None and q.scale_offset is not None
    units = _spread(q.scale_blocks, q.scales.shape[-1])
    return q.scales.astype(jnp.float32) * units + q.scale_offset[..., None, None]


def _spread(units: Float[Array, "*s G M"], columns: int) -> Float[Array, "*s G N"]:
    return jnp.repeat(units, _SCALE_BLOCK, axis=-1)[..., :columns]


def _pack(codes: UInt8[Array, "*s K N"]) -> UInt8[Array, "*s P N"]:
    return codes[..., 0::2, :] | (codes[..., 1::2, :] << 4)


def _unpack(packed: UInt8[Array, "*s P N"]) -> UInt8[Array, "*s K N"]:
    pairs = jnp.stack([packed & 15, packed >> 4], axis=-2)
    *lead, rows, columns = packed.shape
    return pairs.reshape(*lead, 2 * rows, columns)
