"""From tokenized preferences to batches of few shapes, in an order that can be resumed."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tunix.data import (
    batching,
    fingerprint,
    iterators,
    packing,
    preference_batching,
    preference_config,
    preference_tokens,
)

Config = preference_config.PreferenceDataConfig


def pair_batches(
    pairs: Sequence[preference_tokens.TokenizedPair],
    settings: Config,
    *,
    with_last: bool = False,
) -> iterators.Batches[preference_batching.PairBatch]:
    """Return batches of pairs; every ``iter()`` begins anew and can be resumed.

    Args:
        pairs: Tokenized pairs.
        settings: See :class:`~tunix.data.preference_config.PreferenceDataConfig`.
        with_last: Whether rows hold the last token of an answer too, which reward models read.

    Raises:
        ValueError: If a pair does not fit a packed row.
    """
    sizes = [preference_batching.pair_size(pair, with_last=with_last) for pair in pairs]
    room = _Room(sizes, settings)

    def collate(rows: Sequence[Any]) -> preference_batching.PairBatch:
        return preference_batching.collate_pairs(
            rows,
            num_rows=settings.batch_size,
            length=room.length(
                preference_batching.pair_size(p, with_last=with_last) for row in rows for p in row
            ),
            pairs_per_row=room.per_row,
            with_last=with_last,
        )

    return _batches(pairs, settings, room, collate)


def rating_batches(
    ratings: Sequence[preference_tokens.TokenizedRating],
    settings: Config,
) -> iterators.Batches[preference_batching.RatingBatch]:
    """Return batches of rated answers; every ``iter()`` begins anew and can be resumed.

    Raises:
        ValueError: If an answer does not fit a packed row.
    """
    room = _Room([preference_batching.rating_size(rating) for rating in ratings], settings)

    def collate(rows: Sequence[Any]) -> preference_batching.RatingBatch:
        return preference_batching.collate_ratings(
            rows,
            num_rows=settings.batch_size,
            length=room.length(preference_batching.rating_size(x) for row in rows for x in row),
            answers_per_row=room.per_row,
        )

    return _batches(ratings, settings, room, collate)


def row_length(
    examples: Sequence[preference_tokens.TokenizedPair | preference_tokens.TokenizedRating],
    settings: Config,
    *,
    with_last: bool = False,
) -> int:
    """Return the tokens of the longest row of any batch; arguments and errors as above."""
    sizes = [
        preference_batching.pair_size(example, with_last=with_last)
        if isinstance(example, preference_tokens.TokenizedPair)
        else preference_batching.rating_size(example)
        for example in examples
    ]
    return _Room(sizes, settings).buckets[-1]


class _Room:
    """The sizes of a data set's batches: few, because each is a program."""

    def __init__(self, sizes: Sequence[int], settings: Config):
        self.sizes, self.is_packed = np.asarray(sizes, np.int64), settings.packing
        longest = int(self.sizes.max(initial=1))
        self.capacity = settings.row_length or longest
        if self.capacity < longest:
            raise ValueError(
                f"a prompt with its answers has {longest} tokens, row_length is {self.capacity}"
            )
        self.buckets = batching.length_buckets(self.capacity)
        if settings.pad_to == "max" or settings.packing:
            self.buckets = self.buckets[-1:]
        shortest = int(self.sizes.min(initial=self.capacity))
        self.per_row = self.capacity // max(shortest, 1) if settings.packing else 1

    def length(self, sizes: Iterator[int]) -> int:
        """Return the row length for a batch of examples of these sizes."""
        return self.buckets[-1] if self.is_packed else batching.bucket_for(max(sizes), self.buckets)


def _batches(
    examples: Sequence[Any],
    settings: Config,
    room: _Room,
    collate: Callable,
) -> iterators.Batches[Any]:
    pack = packing.packer(room.sizes, capacity=room.capacity, window=settings.packing_window)
    group = pack if settings.packing else None
    content = fingerprint.combined(example.checksum for example in examples)
    return iterators.Batches.of(examples, settings, collate, group=group, content=content)
