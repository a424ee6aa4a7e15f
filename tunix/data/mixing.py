"""Several data sets in given proportions, as an order of indices.

The data sets are laid one after the other; an epoch is a list of indices into that, so that
shuffling, packing and resuming are those of any data set. Each data set is gone through from
beginning to end, whatever the epochs, before any of its examples comes again.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int

from tunix.utils import config

Order = Callable[[int], Int[np.ndarray, " N"]]
"""Returns the indices of an epoch."""

_MOST_PASSES = 10_000
"""Of a data set in an epoch."""

Stop = Literal["first_exhausted", "all_exhausted"]


def mixed_order(
    sizes: Sequence[int],
    weights: Sequence[float],
    *,
    shuffle_seed: int | None,
    stop: Stop = "first_exhausted",
) -> Order:
    """Return the order of a mixture, a function of the epoch.

    Args:
        sizes: Examples of every data set.
        weights: What share of the examples each data set gives; any positive numbers.
        shuffle_seed: ``None`` keeps the order of the data and spreads every data set evenly.
        stop: Whether an epoch lasts until the first data set has been gone through once, or
            until the last one has, the others being repeated.

    Raises:
        ConfigError: If the arguments do not fit each other.
    """
    problems = []
    if len(sizes) != len(weights):
        problems.append(f"{len(sizes)} data sets have {len(weights)} weights; give one for each")
    if faults := [fault for weight in weights if (fault := config.number_fault(weight))]:
        problems.append(f"weights {faults[0]}")
    elif not all(weight > 0 for weight in weights):
        problems.append(f"weights must be positive numbers, got {list(weights)}")
    if not all(size > 0 for size in sizes):
        problems.append(f"every data set needs an example, their sizes are {list(sizes)}")
    if problems:
        raise config.ConfigError("mixture", problems)
    counts = _draws(np.asarray(sizes), np.asarray(weights, np.float64), stop)
    if problems := list(_repeat_problems(sizes, weights, counts)):
        raise config.ConfigError("mixture", problems)
    starts = np.cumsum([0, *sizes[:-1]])

    def order(epoch: int) -> Int[np.ndarray, " N"]:
        turns = _turns(counts, None if shuffle_seed is None else [shuffle_seed, epoch])
        indices = np.empty(len(turns), np.int64)
        for k, (size, count) in enumerate(zip(sizes, counts.tolist(), strict=True)):
            drawn = _drawn(size, epoch * count, count, shuffle_seed, k)
            indices[turns == k] = starts[k] + drawn
        return indices

    return order


def _draws(sizes: Int[np.ndarray, " K"], weights: np.ndarray, stop: Stop) -> np.ndarray:
    """Return how many examples of each data set an epoch has, in the proportion of ``weights``."""
    pick = np.min if stop == "first_exhausted" else np.max
    scale = pick(sizes / weights)
    # Cut to what int64 holds: such a mixture is refused.
    return np.maximum(np.round(np.minimum(weights * scale, 1e18)).astype(np.int64), 1)


def _repeat_problems(
    sizes: Sequence[int], weights: Sequence[float], counts: np.ndarray
) -> Iterator[str]:
    """Yield the data sets that an epoch would go through more often than anybody means."""
    for k, (size, weight, count) in enumerate(zip(sizes, weights, counts.tolist(), strict=True)):
        if count > _MOST_PASSES * size:
            yield (
                f"weights {list(weights)}: data set {k} (weight {weight}, {size:,} examples) would "
                f"come {count // size:,} times in each epoch until the last one is exhausted, at "
                f"most {_MOST_PASSES:,} are possible; choose weights nearer to each other, or set "
                "stop to 'first_exhausted'"
            )


def _turns(counts: np.ndarray, seed: list[int] | None) -> Int[np.ndarray, " N"]:
    """Return which data set gives each example."""
    owners = np.repeat(np.arange(len(counts)), counts)
    if seed is not None:
        return np.random.default_rng(seed).permutation(owners)
    # Each data set's j-th example of n belongs at (j + 1/2) / n of the way.
    places = np.concatenate([(np.arange(n) + 0.5) / n for n in counts])
    return owners[np.argsort(places, kind="stable")]


def _drawn(size: int, first: int, count: int, seed: int | None, k: int) -> np.ndarray:
    """Return draws ``first`` to ``first + count`` of a data set that is gone through for ever."""
    passes = range(first // size, (first + count - 1) // size + 1)
    if seed is None:
        order = np.concatenate([np.arange(size) for _ in passes])
    else:
        order = np.concatenate(
            [np.random.default_rng([seed, k, p]).permutation(size) for p in passes]
        )
    return order[first - passes[0] * size :][:count]
