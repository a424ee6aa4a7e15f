"""Lays examples into arrays of one shape.

A row holds one example, or several packed ones. Axes: ``B`` rows, ``T`` tokens.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from tunix.data import tokenize

Batch = dict[str, np.ndarray]
Layout = Callable[[Sequence[Sequence[tokenize.TokenizedExample]]], Batch]
"""Makes a batch of rows, each a list of examples."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """The rows of every batch that one of several hosts reads.

    All hosts plan the same batches, so that lengths agree and an epoch is an epoch.
    """

    process_index: int = 0
    """Which of the hosts this one is: ``jax.process_index()``."""
    process_count: int = 1
    """How many hosts there are: ``jax.process_count()``."""

    def require_divides(self, batch_size: int) -> None:
        """Raise unless every host gets equally many rows, and this is one of the hosts.

        Raises:
            ValueError: Naming the numbers that do not fit.
        """
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(
                f"process_index {self.process_index} is none of {self.process_count} processes"
            )
        if batch_size % self.process_count:
            raise ValueError(
                f"a batch of {batch_size} rows does not divide among {self.process_count} "
                "processes; choose a multiple"
            )

    def rows_of(self, batch: Batch) -> Batch:
        """Return this host's rows of a batch."""
        each = len(batch["input_tokens"]) // self.process_count
        mine = slice(self.process_index * each, (self.process_index + 1) * each)
        return {name: array[mine] for name, array in batch.items()}


PadTo = Literal["longest", "bucket", "max"]
"""How long rows are that are not packed: as the longest of the data, rounded up; as the longest of
their batch, rounded up to a power of two; as long as the settings allow."""

_MULTIPLE = 64
"""Row lengths are multiples of this, so that data sets that differ little share programs."""

WHOLE = Shard()
"""The only host reads everything."""


def collate(
    rows: Sequence[Sequence[tokenize.TokenizedExample]],
    *,
    num_rows: int,
    length: int,
    pad_id: int,
) -> Batch:
    """Return a batch of ``num_rows`` x ``length``.

    Args:
        rows: The examples of every row. Fewer rows than ``num_rows`` leave empty ones, so
            that a last short batch needs no program of its own.
        num_rows: Rows of the batch; B.
        length: Tokens of a row; T.
        pad_id: Fills what is left; any id will do, for its weight is 0.

    Returns:
        ``input_tokens`` int32, ``input_mask`` float32 (entry t weighs the prediction of
        token t; 0 on the first token of every example and on padding), ``positions`` int32
        (restart at every example) and ``segment_ids`` int32 (1, 2, ... in a row, 0 on
        padding), each ``[B, T]``.

    Raises:
        ValueError: If a row does not fit, or there are too many.
    """
    if len(rows) > num_rows:
        raise ValueError(f"{len(rows)} rows do not fit a batch of {num_rows}")
    shape = (num_rows, length)
    tokens = np.full(shape, pad_id, np.int32)
    weights = np.zeros(shape, np.float32)
    positions = np.zeros(shape, np.int32)
    segments = np.zeros(shape, np.int32)
    for b, row in enumerate(rows):
        start = 0
        for segment, example in enumerate(row, start=1):
            end = start + len(example.tokens)
            if end > length:
                raise ValueError(f"row {b} needs {end} tokens or more, the batch has {length}")
            tokens[b, start:end] = example.tokens
            weights[b, start:end] = example.loss_weights
            weights[b, start] = 0.0  # its target would be another example's continuation
            positions[b, start:end] = np.arange(end - start)
            segments[b, start:end] = segment
            start = end
    return {
        "input_tokens": tokens,
        "input_mask": weights,
        "positions": positions,
        "segment_ids": segments,
    }


def row_length(longest: int, limit: int | None = None) -> int:
    """Return the tokens of the rows of a data set, in which no example is longer than ``longest``.

    One length for all its batches, since every length is one compiled program.
    """
    rounded = -(-longest // _MULTIPLE) * _MULTIPLE
    return rounded if limit is None else min(rounded, limit)


def length_buckets(max_length: int, *, smallest: int = 64) -> tuple[int, ...]:
    """Return the row lengths in use: powers of two times ``smallest``, then ``max_length``.

    Every length is one compiled program, so there are few of them.
    """
    lengths = []
    while smallest < max_length:
        lengths.append(smallest)
        smallest *= 2
    return (*lengths, max_length)


def bucket_for(length: int, buckets: Sequence[int]) -> int:
    """Return the smallest of the ascending ``buckets`` that holds ``length``.

    Raises:
        ValueError: If none does.
    """
    for bucket in buckets:
        if length <= bucket:
            return bucket
    raise ValueError(f"{length} tokens do not fit the longest row of {buckets[-1]}")
