"""Cuts a batch into chunks of rows, for passes that shall take less memory."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tunix.rl import common


def by_chunks(
    fn: Callable[[common.PolicyBatch], Float[Array, "S C"]],
    batch: common.PolicyBatch,
    rows: int | None,
    *,
    multiple: int = 1,
) -> Float[Array, "S C"]:
    """Return ``fn(batch)``, computed from so many rows of tokens at a time.

    Args:
        fn: Says something of every completion token, 0 where the batch does not have it.
        batch: All rows.
        rows: Rows at a time; ``None`` takes all at once.
        multiple: Rows are rounded up to a multiple of this: the devices that share them.
    """
    if rows is None:
        return fn(batch)
    rows = -(-rows // multiple) * multiple
    if rows >= batch.tokens.shape[0]:
        return fn(batch)
    # Every token is in one chunk and exactly 0 in the others, so that the sum changes no bit.
    first, *others = map(fn, split_rows(batch, rows, multiple=multiple))
    for other in others:
        first = jnp.add(first, other)
    return first


def split_rows(
    batch: common.PolicyBatch, rows: int, *, multiple: int = 1
) -> list[common.PolicyBatch]:
    """Return batches of ``rows`` rows each, all of one shape; the last is filled up with padding.

    Args:
        batch: Tokens and their places; what else it holds goes into every part as it is.
        rows: Rows of each part.
        multiple: The number of targets is one of this.
    """
    length = batch.tokens.shape[1]
    source, targets, slot = (np.asarray(x) for x in (batch.source, batch.targets, batch.slot))
    is_target = np.zeros(len(source), bool)
    is_target[slot[slot < len(source)]] = True
    chunk_of = np.where(is_target, source // (rows * length), -1)
    count = -(-batch.tokens.shape[0] // rows)
    members = [np.flatnonzero(chunk_of == chunk) for chunk in range(count)]
    size = _round_up(max(map(len, members)), max(rows * length // 4, 1))
    size = _round_up(size, multiple)
    return [
        dataclasses.replace(
            batch,
            **{
                name: _rows_of(getattr(batch, name), chunk, rows)
                for name in ("tokens", "positions", "segment_ids", "prefix_ids")
            },
            source=_filled(source[own] - chunk * rows * length, size),
            targets=_filled(targets[own], size),
            slot=_slots(slot, own, len(source), size),
        )
        for chunk, own in enumerate(members)
    ]


def _rows_of(values: Array, chunk: int, rows: int) -> np.ndarray:
    part = np.asarray(values)[chunk * rows : (chunk + 1) * rows]
    return np.pad(part, ((0, rows - len(part)), (0, 0)))


def _filled(values: np.ndarray, size: int) -> np.ndarray:
    return np.pad(values, (0, size - len(values)))


def _slots(slot: np.ndarray, own: np.ndarray, old_size: int, new_size: int) -> np.ndarray:
    """Return where a chunk has each completion token; ``new_size`` where it does not."""
    place = np.full(old_size + 1, new_size, np.int32)
    place[own] = np.arange(len(own))
    return place[np.minimum(slot, old_size)]


def _round_up(n: int, multiple: int) -> int:
    return -(-max(n, 1) // multiple) * multiple
