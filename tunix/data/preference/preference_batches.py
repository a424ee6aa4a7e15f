"""From tokenized preferences to batches of few shapes, in an order that can be resumed."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tunix.data import batching, fingerprint, iterators, packing
from tunix.data.preference import preference_batching, preference_config, preference_tokens

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
        settings: See :class:`~tunix.data.preference.preference_config.PreferenceDataConfig`.
        with_last: Whether rows hold the last token of an answer too, which reward models read.

    Raises:
        ValueError: If a pair does not fit a packed row.
    """
    sizes = [preference_batching.pair_size(pair, with_last=with_last) for pair in pairs]
    room = _Room(sizes, settings, _num_targets(pairs, in_one_row=True))

    def collate(rows: Sequence[Any]) -> preference_batching.PairBatch:
        return preference_batching.collate_pairs(
            rows,
            num_rows=settings.batch_size,
            length=room.length_of(
                preference_batching.pair_size(p, with_last=with_last) for row in rows for p in row
            ),
            num_targets=room.num_targets,
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
    sizes = [preference_batching.rating_size(rating) for rating in ratings]
    room = _Room(sizes, settings, _num_targets(ratings, in_one_row=False))

    def collate(rows: Sequence[Any]) -> preference_batching.RatingBatch:
        return preference_batching.collate_ratings(
            rows,
            num_rows=settings.batch_size,
            length=room.length_of(preference_batching.rating_size(x) for row in rows for x in row),
            num_targets=room.num_targets,
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
    return _Room(sizes, settings, [0] * len(sizes)).length


def _num_targets(
    examples: Sequence[preference_tokens.TokenizedPair | preference_tokens.TokenizedRating],
    *,
    in_one_row: bool,
) -> list[int]:
    """Return how many tokens of every example are predicted in a row."""
    counts = ([int(answer.mask.sum()) for answer in example.answers] for example in examples)
    return [sum(of_answers) if in_one_row else max(of_answers) for of_answers in counts]


class _Room:
    """The sizes of a data set's batches: one or few, because each is a program."""

    def __init__(self, sizes: Sequence[int], settings: Config, num_targets: Sequence[int]):
        self.sizes = np.asarray(sizes, np.int64)
        longest = int(self.sizes.max(initial=1))
        self.capacity = settings.row_length or longest
        if self.capacity < longest:
            raise ValueError(
                f"a prompt with its answers has {longest} tokens, row_length is {self.capacity}"
            )
        self.length, self.per_row = self.capacity, 1
        counts = np.asarray(num_targets, np.int64)
        self.num_targets = int(counts.max(initial=1))
        if settings.packing:
            self.per_row = self.capacity // max(int(self.sizes.min(initial=self.capacity)), 1)
            # A row is full of the example that has most targets for its size, at worst.
            share = (counts / np.maximum(self.sizes, 1)).max(initial=0.0)
            self.num_targets = max(1, math.ceil(share * self.capacity))
        elif settings.pad_to == "longest":
            self.length = batching.row_length(longest)
        is_ragged = settings.pad_to == "bucket" and not settings.packing
        self._buckets = batching.length_buckets(self.length) if is_ragged else (self.length,)

    def length_of(self, sizes: Iterator[int]) -> int:
        """Return the row length of a batch of examples of these sizes."""
        return batching.bucket_for(max(sizes), self._buckets) if self._buckets[1:] else self.length


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
