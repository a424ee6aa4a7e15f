"""Lays prompts and their answers into rows: each prompt once, its answers behind it.

An answer sees the prompt and itself, never another answer, and its positions go on from the
prompt's; so a model computes the same as with one row per answer, and reads the prompt once. A
row holds one prompt with its answers, or several packed ones. Everything is indexed within its
row, so that the rows of a batch can be split over devices.

The arrays are numpy's until a trainer puts them on devices. Axes: ``R`` rows of ``T`` tokens, ``M``
predicted tokens of a row, ``A`` answers of a row (of a pair the chosen one, then the rejected one;
``A = 2 K`` for ``K`` pairs).
"""

from collections.abc import Sequence
from typing import Any

import flax.struct
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tunix.data.preference import preference_tokens
from tunix.ops import visibility as visibility_lib


@flax.struct.dataclass
class AnswerRows:
    """Where tokens and answers lie; padding is 0, and belongs to no answer."""

    tokens: Int[Array, "R T"]
    positions: Int[Array, "R T"]
    segment_ids: Int[Array, "R T"]
    """Which tokens belong together; 0 is padding."""
    prefix_ids: Int[Array, "R T"]
    """The segment a token sees besides its own: an answer's prompt, a prompt itself."""
    source: Int[Array, "R M"]
    """Index in the row of the hidden state that predicts each target."""
    targets: Int[Array, "R M"]
    answer: Int[Array, "R M"]
    """The answer each target belongs to; ``A`` for none."""
    lengths: Int[Array, "R A"]
    """How many tokens of each answer count; 0 where there is none."""
    ends: Int[Array, "R A"] | None = None
    """Index in the row of the last token of each answer, where last tokens are laid down."""
    num_targets: Int[Array, ""] | None = None
    """Of all rows, where they are on one device: the head is computed for no more then."""

    @property
    def visibility(self) -> visibility_lib.Visibility:
        """Where the tokens stand and whom they see."""
        return visibility_lib.Visibility(self.positions, self.segment_ids, self.prefix_ids)


@flax.struct.dataclass
class PairBatch:
    """Pairs of answers."""

    rows: AnswerRows
    margin: Float[Array, "R K"]
    """By how much the chosen answer is better; 0 where the data does not say."""
    ref_logps: Float[Array, "R A"] | None = None
    """Log-probabilities of the answers under the reference, where they are known."""


@flax.struct.dataclass
class RatingBatch:
    """Answers that are good or bad."""

    rows: AnswerRows
    is_desirable: Bool[Array, "R A"]
    foreign: AnswerRows
    """The same prompts with answers to other prompts."""
    ref_logps: Float[Array, "R A"] | None = None
    ref_foreign_logps: Float[Array, "R A"] | None = None


def pair_size(pair: preference_tokens.TokenizedPair, *, with_last: bool = False) -> int:
    """Return the tokens that a pair takes in a row."""
    return _size(pair.prompt, pair.answers, with_last)


def rating_size(rating: preference_tokens.TokenizedRating) -> int:
    """Return the tokens that a rated answer takes, or its foreign one if that is longer."""
    return max(_size(rating.prompt, (answer,), False) for answer in rating.answers)


def collate_pairs(
    rows: Sequence[Sequence[preference_tokens.TokenizedPair]],
    *,
    num_rows: int,
    length: int,
    num_targets: int | None = None,
    pairs_per_row: int = 1,
    with_last: bool = False,
) -> PairBatch:
    """Return a batch of pairs.

    Args:
        rows: The pairs of every row; fewer rows than ``num_rows`` leave empty ones.
        num_rows: Rows of the batch; R.
        length: Tokens of a row; T.
        num_targets: Room for predicted tokens in a row; M. By default as many as it can hold.
        pairs_per_row: Room for pairs in a row; K.
        with_last: Whether the last token of an answer is laid down too. It predicts nothing, but
            a reward model reads it.

    Raises:
        ValueError: If a row does not fit, there are too many, or some pairs have reference
            log-probabilities and others have not.
    """
    _check_fit(rows, num_rows, pairs_per_row)
    groups = [[(p.prompt, p.answers) for p in row] for row in rows]
    margin = _zeros((num_rows, pairs_per_row), np.float32)
    ref = _zeros((num_rows, 2 * pairs_per_row), np.float32)
    for r, row in enumerate(rows):
        for k, pair in enumerate(row):
            margin[r, k] = pair.margin
            if pair.ref_logps is not None:
                ref[r, 2 * k : 2 * k + 2] = pair.ref_logps
    layout = lay_out(groups, num_rows, length, 2 * pairs_per_row, with_last, num_targets)
    return PairBatch(layout, margin, ref if _has_reference(rows) else None)


def collate_ratings(
    rows: Sequence[Sequence[preference_tokens.TokenizedRating]],
    *,
    num_rows: int,
    length: int,
    num_targets: int | None = None,
    answers_per_row: int = 1,
) -> RatingBatch:
    """Return a batch of rated answers; arguments and errors as for :func:`collate_pairs`."""
    _check_fit(rows, num_rows, answers_per_row)
    shape = (num_rows, answers_per_row)
    good, ref = _zeros(shape, bool), _zeros((2, *shape), np.float32)
    for r, row in enumerate(rows):
        for k, rating in enumerate(row):
            good[r, k] = rating.is_desirable
            if rating.ref_logps is not None:
                ref[:, r, k] = rating.ref_logps
    own = [[(x.prompt, (x.answer,)) for x in row] for row in rows]
    foreign = [[(x.prompt, x.answers[1:]) for x in row] for row in rows]
    known = _has_reference(rows)
    return RatingBatch(
        lay_out(own, num_rows, length, answers_per_row, False, num_targets),
        good,
        lay_out(foreign, num_rows, length, answers_per_row, False, num_targets),
        ref[0] if known else None,
        ref[1] if known else None,
    )


Group = tuple[np.ndarray, Sequence[preference_tokens.Answer]]


def lay_out(
    rows: Sequence[Sequence[Group]],
    num_rows: int,
    length: int,
    num_answers: int,
    with_last: bool,
    num_targets: int | None = None,
) -> AnswerRows:
    """Return rows of prompts with their answers; arguments as for :func:`collate_pairs`."""
    writer = _Writer((num_rows, length), num_answers, with_last)
    for r, row in enumerate(rows):
        for prompt, answers in row:
            writer.add(r, prompt, answers)
    # The first token of an answer is predicted by its prompt, and not laid down for its last.
    return writer.rows(length + num_answers if num_targets is None else num_targets)


class _Writer:
    """Lays prompts and answers into rows one after the other."""

    def __init__(self, shape: tuple[int, int], num_answers: int, with_last: bool):
        self.tokens, self.positions, self.segments, self.prefixes = _zeros((4, *shape), np.int32)
        self.lengths, self.ends = _zeros((2, shape[0], num_answers), np.int32)
        self.filled, self.segment, self.answer = _zeros((3, shape[0]), np.int32)
        self.predicted: list[list[np.ndarray]] = [[] for _ in range(shape[0])]
        self.with_last = with_last

    def add(
        self, row: int, prompt: np.ndarray, answers: Sequence[preference_tokens.Answer]
    ) -> None:
        """Write a prompt and its answers behind what the row already holds."""
        start = self._write(row, prompt, 0, None)
        prompt_segment, prompt_end = int(self.segment[row]), start + len(prompt) - 1
        for answer in answers:
            written = answer.tokens if self.with_last else answer.tokens[:-1]
            start = self._write(row, written, len(prompt), prompt_segment)
            source = np.concatenate([[prompt_end], start + np.arange(len(answer.tokens) - 1)])
            index = np.full(len(source), self.answer[row])
            entries = np.stack([source, answer.tokens, index]).astype(np.int32)
            self.predicted[row].append(entries[:, answer.mask])
            self.lengths[row, self.answer[row]] = answer.length
            self.ends[row, self.answer[row]] = start + len(written) - 1 if len(written) else 0
            self.answer[row] += 1

    def _write(self, row: int, ids: np.ndarray, position: int, prefix: int | None) -> int:
        """Write one segment and return where it starts."""
        start = int(self.filled[row])
        span = slice(start, start + len(ids))
        if span.stop > self.tokens.shape[1]:
            raise ValueError(
                f"row {row} needs {span.stop} tokens or more, the batch has {self.tokens.shape[1]}"
            )
        self.segment[row] += 1
        self.tokens[row, span] = ids
        self.positions[row, span] = position + np.arange(len(ids))
        self.segments[row, span] = self.segment[row]
        self.prefixes[row, span] = self.segment[row] if prefix is None else prefix
        self.filled[row] = span.stop
        return start

    def rows(self, num_targets: int) -> AnswerRows:
        """Return the arrays."""
        found = [np.concatenate([_zeros((3, 0), np.int32), *row], axis=1) for row in self.predicted]
        shape = (len(found), num_targets)
        source, targets, answer = _zeros((3, *shape), np.int32)
        answer[:] = self.lengths.shape[1]
        for r, entries in enumerate(found):
            count = entries.shape[1]
            source[r, :count], targets[r, :count], answer[r, :count] = entries
        arrays: Any = (
            self.tokens,
            self.positions,
            self.segments,
            self.prefixes,
            source,
            targets,
            answer,
            self.lengths,
            self.ends if self.with_last else None,
        )
        return AnswerRows(*arrays)


def _zeros(shape: tuple[int, ...], dtype: Any) -> Any:
    """Return zeros on the host; ``Any``, for the fields of a batch name the arrays of a device."""
    return np.zeros(shape, dtype)


def _size(prompt: np.ndarray, answers: Sequence[preference_tokens.Answer], with_last: bool) -> int:
    return len(prompt) + sum(len(answer.tokens) - (not with_last) for answer in answers)


def _check_fit(rows: Sequence[Sequence[object]], num_rows: int, per_row: int) -> None:
    if len(rows) > num_rows:
        raise ValueError(f"{len(rows)} rows do not fit a batch of {num_rows}")
    if (most := max(map(len, rows), default=0)) > per_row:
        raise ValueError(f"a row has {most} examples, the batch has room for {per_row}")


def _has_reference(rows: Sequence[Sequence[preference_tokens.TokenizedPair]] | Sequence) -> bool:
    known = {example.ref_logps is not None for row in rows for example in row}
    if len(known) == 2:
        raise ValueError("some examples have reference log-probabilities and others have not")
    return known == {True}
