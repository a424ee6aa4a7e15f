"""Lays examples into arrays of one shape.

A row holds one example, or several packed ones. Axes: ``B`` rows, ``T`` tokens.
"""

from collections.abc import Sequence

import numpy as np

from tunix.data import tokenize

Batch = dict[str, np.ndarray]


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
