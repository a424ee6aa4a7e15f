"""Where every token of a rollout lies in the arrays the model reads.

A group's prompt is laid down once and its completions follow it in the same row:
each sees the prompt and itself, never another completion, and its positions go on
from the prompt's. The last token of a completion predicts nothing and is left out
of the rows. Several groups share a row; a group that does not fit is split and its
prompt repeated. The function computed is that of one row per completion
(:func:`pad_rows`), only cheaper.

Array sizes come from a small set, so that few programs are compiled: rows have a
fixed length, their number is 1, 1.5, 2, 3, 4, 6, ... and the number of predicted
tokens a quarter, half, three quarters or all of what the rows hold.

Axes: ``R`` rows, ``T`` their length, ``N`` predicted tokens, ``S`` completions in
their original order (prompt-major), ``C`` completion tokens.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

ROW_LENGTH_MULTIPLE = 16
TARGET_ROW_LENGTH = 512
"""Rows are about this long where groups are short enough: long rows waste attention."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackGroup:
    """A prompt and those of its completions that the model has to read."""

    prompt: Int[np.ndarray, " P"]
    completions: Sequence[Int[np.ndarray, " T"]]
    indices: Sequence[int]
    """Place of each completion among the ``S`` of the batch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The arrays of one packed batch; what lies on padding is 0."""

    tokens: Int[np.ndarray, "R T"]
    positions: Int[np.ndarray, "R T"]
    segment_ids: Int[np.ndarray, "R T"]
    """Which tokens belong together; 0 is padding."""
    prefix_ids: Int[np.ndarray, "R T"]
    """The segment a token sees besides its own: a completion's prompt, a prompt itself."""
    source: Int[np.ndarray, " N"]
    """Index into the flattened rows of the hidden state that predicts each target."""
    targets: Int[np.ndarray, " N"]
    slot: Int[np.ndarray, "S C"]
    """Index into ``N`` of each completion token; ``N`` itself where there is none."""
    num_tokens: int
    """How many of the ``R * T`` tokens are not padding."""

    @property
    def arrays(self) -> dict[str, Any]:
        """The arrays by name."""
        return {name: value for name, value in vars(self).items() if name != "num_tokens"}


def bucket(n: int) -> int:
    """Return the smallest of 1, 2, 3, 4, 6, 8, 12, 16, ... that is at least ``n``."""
    power = 1 << max(n - 1, 0).bit_length()
    return power * 3 // 4 if power >= 4 and n <= power * 3 // 4 else power


def default_row_length(
    *, max_prompt_length: int, max_completion_length: int, num_generations: int
) -> int:
    """Return a row length that fits these settings and never changes during a run.

    As many whole groups of the largest size as fit into ``TARGET_ROW_LENGTH``; one
    group, or what is left of it at that length, where groups are larger; and at least
    one prompt with one completion.
    """
    longest = max_prompt_length + max_completion_length - 1
    group = max_prompt_length + num_generations * (max_completion_length - 1)
    if group > TARGET_ROW_LENGTH:
        return _round_up(max(longest, TARGET_ROW_LENGTH))
    group = _round_up(group)
    return group * (TARGET_ROW_LENGTH // group)


def pack_groups(
    groups: Sequence[PackGroup],
    *,
    num_sequences: int,
    max_completion_length: int,
    row_length: int,
    min_rows: int = 1,
    min_targets: int = 1,
) -> Layout:
    """Return the layout in which a group's completions share one copy of their prompt.

    Args:
        groups: What to lay down; completions without tokens take no place.
        num_sequences: Size of the ``S`` axis; completions in no group have no slots.
        max_completion_length: Size of the ``C`` axis.
        row_length: Length of a row; longer if one prompt with one completion needs it.
        min_rows: Least number of rows, e.g. to give several batches one shape.
        min_targets: Least size of the ``N`` axis.

    Raises:
        ValueError: If a prompt is empty: its last token predicts the first completion token.
    """
    read = [group for group in groups if any(len(c) for c in group.completions)]
    row_length = max([row_length, *(_round_up(_longest(g)) for g in read)])
    pieces = [piece for group in groups for piece in _split(group, row_length)]
    rows = _first_fit(pieces, row_length)
    writer = _Writer(
        num_rows=max(bucket(len(rows)), min_rows),
        row_length=row_length,
        num_sequences=num_sequences,
        max_completion_length=max_completion_length,
    )
    for row, members in enumerate(rows):
        for piece in members:
            writer.add(row, piece)
    return writer.layout(min_targets)


def pad_rows(
    groups: Sequence[PackGroup],
    *,
    num_sequences: int,
    max_completion_length: int,
    row_length: int,
    min_rows: int = 1,
    min_targets: int = 1,
) -> Layout:
    """Return the plain layout: one row per completion, each with its own copy of the prompt.

    The reference that packing is tested against. Arguments as for :func:`pack_groups`.
    """
    singles = [
        PackGroup(prompt=group.prompt, completions=[completion], indices=[index])
        for group in groups
        for completion, index in zip(group.completions, group.indices, strict=True)
        if len(completion)
    ]
    row_length = max([row_length, *(_round_up(_longest(g)) for g in singles)])
    writer = _Writer(
        num_rows=max(len(singles), min_rows),
        row_length=row_length,
        num_sequences=num_sequences,
        max_completion_length=max_completion_length,
    )
    for row, single in enumerate(singles):
        writer.add(row, single)
    return writer.layout(min_targets)


def _round_up(n: int, multiple: int = ROW_LENGTH_MULTIPLE) -> int:
    return -(-n // multiple) * multiple


def _longest(group: PackGroup) -> int:
    """Return the row length that the prompt with its longest completion needs."""
    return len(group.prompt) + max(len(c) for c in group.completions) - 1


def _size(group: PackGroup) -> int:
    return len(group.prompt) + sum(len(c) - 1 for c in group.completions)


def _split(group: PackGroup, row_length: int) -> list[PackGroup]:
    """Return the group in pieces of at most ``row_length`` tokens, completions in order."""
    if not len(group.prompt):
        raise ValueError(
            "a prompt has no tokens; there must be one to predict the first reply token"
        )
    pieces: list[list[int]] = []
    room = -1
    for member, completion in enumerate(group.completions):
        if not len(completion):
            continue
        if len(completion) - 1 > room:
            pieces.append([])
            room = row_length - len(group.prompt)
        pieces[-1].append(member)
        room -= len(completion) - 1
    return [
        PackGroup(
            prompt=group.prompt,
            completions=[group.completions[m] for m in members],
            indices=[group.indices[m] for m in members],
        )
        for members in pieces
    ]


def _first_fit(pieces: Sequence[PackGroup], row_length: int) -> list[list[PackGroup]]:
    """Return the pieces by row: longest first, each into the first row with room."""
    rows: list[list[PackGroup]] = []
    room: list[int] = []
    for piece in sorted(pieces, key=_size, reverse=True):
        size = _size(piece)
        row = next((r for r, free in enumerate(room) if free >= size), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(row_length)
        rows[row].append(piece)
        room[row] -= size
    return rows


class _Writer:
    """Lays groups into rows one after the other and remembers where every target went."""

    def __init__(
        self, *, num_rows: int, row_length: int, num_sequences: int, max_completion_length: int
    ):
        shape = (num_rows, row_length)
        self.tokens = np.zeros(shape, np.int32)
        self.positions = np.zeros(shape, np.int32)
        self.segment_ids = np.zeros(shape, np.int32)
        self.prefix_ids = np.zeros(shape, np.int32)
        self.filled = np.zeros(num_rows, np.int64)
        self.segments = np.zeros(num_rows, np.int64)
        self.source: list[np.ndarray] = []
        self.targets: list[np.ndarray] = []
        self.num_targets = 0
        # -1 stands for "no token" until the size of N is known.
        self.slot = np.full((num_sequences, max_completion_length), -1, np.int32)

    def add(self, row: int, group: PackGroup) -> None:
        """Write a prompt and its completions behind what the row already holds."""
        length = len(group.prompt)
        prompt_segment, prompt_start = self._write(row, group.prompt, first_position=0)
        prompt_end = row * self.tokens.shape[1] + prompt_start + length - 1
        for completion, index in zip(group.completions, group.indices, strict=True):
            _, start = self._write(
                row, completion[:-1], first_position=length, prefix=prompt_segment
            )
            inside = row * self.tokens.shape[1] + start + np.arange(len(completion) - 1)
            self.source.append(np.concatenate([[prompt_end], inside]))
            self.targets.append(completion)
            self.slot[index, : len(completion)] = self.num_targets + np.arange(len(completion))
            self.num_targets += len(completion)

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

    def layout(self, min_targets: int) -> Layout:
        """Return the arrays, with ``N`` rounded up to a quarter of the rows' tokens."""
        quarter = -(-self.tokens.size // 4)
        size = max(_round_up(max(self.num_targets, 1), quarter), min_targets)
        source, targets = np.zeros(size, np.int32), np.zeros(size, np.int32)
        if self.source:
            source[: self.num_targets] = np.concatenate(self.source)
            targets[: self.num_targets] = np.concatenate(self.targets)
        return Layout(
            tokens=self.tokens,
            positions=self.positions,
            segment_ids=self.segment_ids,
            prefix_ids=self.prefix_ids,
            source=source,
            targets=targets,
            slot=np.where(self.slot < 0, size, self.slot).astype(np.int32),
            num_tokens=int(self.filled.sum()),
        )
