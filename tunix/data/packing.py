"""Lays several short examples into one row.

Nothing here touches tokens: lengths go in, groups of indices come out. That no token sees
or predicts another example's is a matter of segment ids, positions and weights, which
``batching`` sets.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return groups of indices whose lengths add up to at most ``capacity``.

    The longest example goes first, each into the first row with room: at most 11/9 of the
    fewest rows possible, plus one (Johnson, 1973). Groups and their members come back in
    the order of the input, so that packing does not sort a shuffled data set by length.

    Raises:
        ValueError: If an example is longer than ``capacity``.
    """
    if (longest := max(lengths, default=0)) > capacity:
        raise ValueError(
            f"example {list(lengths).index(longest)} has {longest} tokens, a row holds {capacity}"
        )
    room = np.full(len(lengths), capacity, np.int64)
    groups: list[list[int]] = []
    for i in np.argsort(-np.asarray(lengths, np.int64), kind="stable"):
        row = int(np.argmax(room >= lengths[i]))  # an untouched row always fits
        if row == len(groups):
            groups.append([])
        groups[row].append(int(i))
        room[row] -= lengths[i]
    return sorted(sorted(group) for group in groups)


def pack_windows(
    order: Int[np.ndarray, " N"], lengths: Int[np.ndarray, " N"], *, capacity: int, window: int
) -> list[list[int]]:
    """Pack the examples of ``order``, ``window`` at a time, in that order.

    Args:
        order: Indices of examples in the order of an epoch.
        lengths: Tokens of every example, by index.
        capacity: Tokens a row holds.
        window: How many consecutive examples are packed together. Larger packs tighter,
            smaller stays nearer to the order.
    """
    rows = []
    for start in range(0, len(order), window):
        chunk = order[start : start + window]
        groups = first_fit_decreasing(lengths[chunk].tolist(), capacity)
        rows += [[int(chunk[i]) for i in group] for group in groups]
    return rows


def packer(
    lengths: Sequence[int] | Int[np.ndarray, " N"], *, capacity: int, window: int
) -> Callable[[Int[np.ndarray, " N"]], list[list[int]]]:
    """Return what packs the examples of an order, see :func:`pack_windows`."""
    of_examples = np.asarray(lengths, np.int64)
    return lambda order: pack_windows(order, of_examples, capacity=capacity, window=window)
