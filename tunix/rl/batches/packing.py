"""Where every token of a rollout lies in the arrays the model reads.

A group's prompt is laid down once and what followed it in each trajectory comes behind, in the
same row: each such answer sees the prompt and itself, never another answer, and its positions go
on from the prompt's. What is not trained is read and predicts nothing; the last trained token is
predicted and not read, and what lies behind it is left out. Several groups share a row; a group
that does not fit is split and its prompt repeated. The function computed is that of one row per
trajectory, only cheaper.

Rows come in chunks of one shape, which follows from settings alone: a model's passes over any
rollout are the same program. A chunk is full when no more fits into its rows, or among its targets.

Axes: ``R`` rows of a chunk, ``T`` their length, ``N`` predicted tokens, ``A`` tokens of an answer.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

ROW_LENGTH_MULTIPLE = 16
TARGET_ROW_LENGTH = 512
"""Rows are about this long where groups are short enough: long rows waste attention."""

CPU_CHUNK_TOKENS, ACCELERATOR_CHUNK_TOKENS = 512, 2048
"""Tokens of a chunk where nothing else is said: enough to keep the device busy, which reads the
weights and adds up gradients for each, and no more, as the last one of a step is padded."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """The size of every chunk."""

    num_rows: int
    row_length: int

    @property
    def num_targets(self) -> int:
        """How many tokens a chunk can predict."""
        return self.num_rows * self.row_length

    def at_most(self, rows: int, num_shards: int) -> "Shape":
        """Return the shape with no more rows than this, which the devices can share."""
        return dataclasses.replace(self, num_rows=min(self.num_rows, _round_up(rows, num_shards)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What follows a prompt in one trajectory, up to the last token that is predicted."""

    index: int
    """Which trajectory of the batch it is."""
    token_ids: Int[np.ndarray, " A"]
    is_target: Bool[np.ndarray, " A"]
    """Which tokens are predicted: the last one, and any before."""

    @classmethod
    def of(
        cls, index: int, token_ids: Int[np.ndarray, " A"], is_target: Bool[np.ndarray, " A"]
    ) -> "Answer":
        """Return the answer without what lies behind the last token that is predicted."""
        length = len(is_target) - int(np.argmax(is_target[::-1])) if is_target.any() else 0
        return cls(index=index, token_ids=token_ids[:length], is_target=is_target[:length])

    @property
    def num_targets(self) -> int:
        """How many tokens are predicted."""
        return int(self.is_target.sum())

    @property
    def num_read(self) -> int:
        """How many tokens are laid down."""
        return max(len(self.token_ids) - 1, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackGroup:
    """A prompt and those answers to it that the model has to read."""

    prompt: Int[np.ndarray, " P"]
    answers: Sequence[Answer]

    @property
    def size(self) -> int:
        """How many tokens are laid down in one row."""
        return len(self.prompt) + sum(answer.num_read for answer in self.answers)

    @property
    def num_targets(self) -> int:
        """How many tokens are predicted."""
        return sum(answer.num_targets for answer in self.answers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The arrays of one chunk; what lies on padding is 0."""

    tokens: Int[np.ndarray, "R T"]
    positions: Int[np.ndarray, "R T"]
    segment_ids: Int[np.ndarray, "R T"]
    """Which tokens belong together; 0 is padding."""
    prefix_ids: Int[np.ndarray, "R T"]
    """The segment a token sees besides its own: an answer's prompt, a prompt itself."""
    source: Int[np.ndarray, " N"]
    """Index into the flattened rows of the hidden state that predicts each target."""
    targets: Int[np.ndarray, " N"]
    sequence: Int[np.ndarray, " N"]
    """Which of :attr:`members` each target belongs to, in rising order; the last id on padding."""
    mask: Bool[np.ndarray, " N"]
    """Where there is a target: at the beginning."""
    members: Sequence[int]
    """The index of each answer, in the order of their targets."""
    num_tokens: int
    """How many of the ``R * T`` tokens are not padding."""

    @property
    def arrays(self) -> dict[str, Any]:
        """The arrays by name."""
        return {k: v for k, v in vars(self).items() if k not in ("members", "num_tokens")}


def chunk_shape(
    *,
    max_prompt_length: int,
    max_completion_length: int,
    num_generations: int,
    micro_batch_size: int | None = None,
    mini_batch_size: int | None = None,
    num_shards: int = 1,
) -> Shape:
    """Return the shape of chunks under these settings.

    Rows hold as many whole groups of the largest size as fit into ``TARGET_ROW_LENGTH``; one
    group, or what is left of it at that length, where groups are larger; and at least one prompt
    with one completion. A chunk is as many rows as ``micro_batch_size`` groups of the largest size
    need, or of about :func:`chunk_tokens`.

    Args:
        max_prompt_length: Longest prompt.
        max_completion_length: Longest completion.
        num_generations: Completions of each prompt.
        micro_batch_size: Groups of a chunk, at their largest.
        mini_batch_size: Groups that are trained on at a time: no chunk is larger.
        num_shards: The number of rows is a multiple of this: the devices that share them.
    """
    read = max(max_completion_length - 1, 1)
    group = max_prompt_length + num_generations * read
    if group > TARGET_ROW_LENGTH:
        length = _round_up(max(max_prompt_length + read, TARGET_ROW_LENGTH))
    else:
        length = _round_up(group) * (TARGET_ROW_LENGTH // _round_up(group))

    def rows_of(num_groups: int) -> int:
        if group <= length:
            return -(-num_groups // (length // group))
        return num_groups * -(-num_generations // ((length - max_prompt_length) // read))

    rows = max(chunk_tokens() // length, 1)
    if micro_batch_size is not None:
        rows = rows_of(micro_batch_size)
    if mini_batch_size is not None:
        rows = min(rows, rows_of(mini_batch_size))
    return Shape(num_rows=_round_up(rows, num_shards), row_length=length)


def chunk_tokens() -> int:
    """Return how many tokens make a chunk on this device."""
    return CPU_CHUNK_TOKENS if jax.default_backend() == "cpu" else ACCELERATOR_CHUNK_TOKENS


def pack_groups(groups: Sequence[PackGroup], shape: Shape) -> list[Layout]:
    """Return the chunks in which a group's answers share one copy of their prompt.

    Args:
        groups: What to lay down; answers without tokens take no place.
        shape: Of each chunk; its rows are longer if one prompt with one answer needs it.

    Raises:
        ValueError: If a prompt is empty: its last token predicts the first token of an answer.
    """
    groups = [
        dataclasses.replace(group, answers=[a for a in group.answers if len(a.token_ids)])
        for group in groups
    ]
    longest = max((len(g.prompt) + a.num_read for g in groups for a in g.answers), default=0)
    if longest > shape.row_length:
        shape = dataclasses.replace(shape, row_length=_round_up(longest))
    pieces = [piece for group in groups for piece in _split(group, shape)]
    return [_layout(chunk, shape) for chunk in _first_fit(pieces, shape)]


def _round_up(n: int, multiple: int = ROW_LENGTH_MULTIPLE) -> int:
    return -(-n // multiple) * multiple


def _split(group: PackGroup, shape: Shape) -> list[PackGroup]:
    """Return the group in pieces that fit into a row, answers in order."""
    if not len(group.prompt):
        raise ValueError(
            "a prompt has no tokens; there must be one to predict the first reply token"
        )
    pieces: list[list[Answer]] = []
    room, targets = -1, 0
    for answer in group.answers:
        if answer.num_read > room or answer.num_targets > targets:
            pieces.append([])
            room, targets = shape.row_length - len(group.prompt), shape.num_targets
        pieces[-1].append(answer)
        room -= answer.num_read
        targets -= answer.num_targets
    return [PackGroup(prompt=group.prompt, answers=answers) for answers in pieces]


def _first_fit(pieces: Sequence[PackGroup], shape: Shape) -> list[list[list[PackGroup]]]:
    """Return the pieces by chunk and row: longest first, each into the first row with room."""
    chunks: list[list[list[PackGroup]]] = []
    targets: list[int] = []
    free: dict[tuple[int, int], int] = {}
    for piece in sorted(pieces, key=lambda piece: piece.size, reverse=True):
        place = next(
            (
                (chunk, row)
                for (chunk, row), left in free.items()
                if left >= piece.size and targets[chunk] >= piece.num_targets
            ),
            None,
        )
        if place is None:
            place = len(chunks), 0
            chunks.append([[] for _ in range(shape.num_rows)])
            targets.append(shape.num_targets)
            free |= {(len(chunks) - 1, row): shape.row_length for row in range(shape.num_rows)}
        chunk, row = place
        chunks[chunk][row].append(piece)
        free[place] -= piece.size
        targets[chunk] -= piece.num_targets
    return chunks


def _layout(rows: Sequence[Sequence[PackGroup]], shape: Shape) -> Layout:
    """Return the arrays of one chunk."""
    writer = _Writer(shape)
    for row, members in enumerate(rows):
        for piece in members:
            writer.add(row, piece)
    return writer.layout()


class _Writer:
    """Lays groups into rows one after the other and remembers where every target went."""

    def __init__(self, shape: Shape):
        rows = (shape.num_rows, shape.row_length)
        self.tokens = np.zeros(rows, np.int32)
        self.positions = np.zeros(rows, np.int32)
        self.segment_ids = np.zeros(rows, np.int32)
        self.prefix_ids = np.zeros(rows, np.int32)
        self.filled = np.zeros(shape.num_rows, np.int64)
        self.segments = np.zeros(shape.num_rows, np.int64)
        self.source: list[np.ndarray] = []
        self.targets: list[np.ndarray] = []
        self.members: list[int] = []

    def add(self, row: int, group: PackGroup) -> None:
        """Write a prompt and its answers behind what the row already holds."""
        length, first = len(group.prompt), row * self.tokens.shape[1]
        prompt, start = self._write(row, group.prompt, first_position=0)
        prompt_end = first + start + length - 1
        for answer in group.answers:
            ids = answer.token_ids
            _, start = self._write(row, ids[:-1], first_position=length, prefix=prompt)
            source = np.append(prompt_end, first + start + np.arange(len(ids) - 1))
            self.source.append(source[answer.is_target])
            self.targets.append(ids[answer.is_target])
            self.members.append(answer.index)

    def _write(
        self, row: int, ids: np.ndarray, *, first_position: int, prefix: int | None = None
    ) -> tuple[int, int]:
        """Write one segment; return its id and where it starts."""
        start = int(self.filled[row])
        span = slice(start, start + len(ids))
        self.segments[row] += 1
        segment = int(self.segments[row])
        self.tokens[row, span] = ids
        self.positions[row, span] = first_position + np.arange(len(ids))
        self.segment_ids[row, span] = segment
        self.prefix_ids[row, span] = segment if prefix is None else prefix
        self.filled[row] += len(ids)
        return segment, start

    def layout(self) -> Layout:
        """Return the arrays."""
        size = self.tokens.size
        counts = [len(own) for own in self.targets]
        return Layout(
            tokens=self.tokens,
            positions=self.positions,
            segment_ids=self.segment_ids,
            prefix_ids=self.prefix_ids,
            source=filled(self.source, size, np.int32),
            targets=filled(self.targets, size, np.int32),
            # Padding belongs to an id that no sequence has, as each has a target at least.
            sequence=filled([np.repeat(np.arange(len(counts)), counts)], size, np.int32, size - 1),
            mask=np.arange(size) < sum(counts),
            members=self.members,
            num_tokens=int(self.filled.sum()),
        )


def filled(parts: Sequence[np.ndarray], size: int, dtype: Any, padding: int = 0) -> np.ndarray:
    """Return the parts behind each other, and padding up to ``size``."""
    result, end = np.full(size, padding, dtype), 0
    for part in parts:
        result[end : end + len(part)] = part
        end += len(part)
    return result
