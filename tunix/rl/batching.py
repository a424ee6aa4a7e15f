"""From groups of trajectories to the micro-batches of one optimizer step.

All micro-batches of a step share their shapes, and each sequence counts in exactly
one of them: the axis ``S`` always holds every sequence of the step, with length 0
where another micro-batch has it. Sequences that are known to have no loss are not
laid down at all; their weight counts in the first micro-batch.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tunix.rl import common, packing, trajectory

LayoutFn = Callable[..., packing.Layout]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """What shapes micro-batches have and what counts in them."""

    row_length: int
    max_completion_length: int
    temperature: float
    micro_batch_size: int
    """Groups per micro-batch, those without live sequences not counted."""
    mask_truncated: bool
    skip_dead: bool
    """Whether sequences of advantage 0 are left out of the rows."""
    num_shards: int = 1
    """Rows, targets and sequences are multiples of this: the devices that share them."""
    layout_fn: LayoutFn = packing.pack_groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepBatches:
    """The micro-batches of one optimizer step and how well they are filled."""

    batches: Sequence[common.PolicyBatch]
    num_tokens: int
    """Tokens that are not padding, over all rows."""
    num_slots: int
    """Tokens and padding."""


def make_step_batches(
    groups: Sequence[trajectory.Group], settings: BatchSettings, *, from_sampler: bool
) -> StepBatches:
    """Return the micro-batches that train on ``groups`` once.

    Args:
        groups: Trajectories with advantages.
        settings: Shapes and what counts.
        from_sampler: Whether ratios start from the sampler's log-probabilities; else from
            the current policy's, which is the same when nothing was updated in between.
    """
    lengths, live = _lengths_and_live(groups, settings)
    starts = np.cumsum([0, *(len(group.trajectories) for group in groups)])
    spans = [np.arange(a, b) for a, b in itertools.pairwise(starts)]
    live_groups = [g for g, span in enumerate(spans) if live[span].any()]
    size = settings.micro_batch_size
    parts = [live_groups[i : i + size] for i in range(0, len(live_groups), size)] or [[]]

    layouts = _layouts_of_one_shape(
        [[_pack_group(groups[g], spans[g], live) for g in part] for part in parts],
        settings,
        num_sequences=len(lengths),
    )
    trajectories = [t for group in groups for t in group.trajectories]
    sampler_logps = _padded_rows([t.trained_logps for t in trajectories], len(lengths), settings)
    advantages = [t.advantage_of_tokens for t in trajectories]
    owner = _owners(parts, spans, len(lengths))
    shared: dict[str, Any] = {
        "live": live,
        "advantages": _padded_rows(advantages, len(lengths), settings),
        "values": _padded_or_none([t.values for t in trajectories], len(lengths), settings),
        "returns": _padded_or_none([t.returns for t in trajectories], len(lengths), settings),
        "sampler_logps": sampler_logps,
        "old_logps": sampler_logps if from_sampler else None,
        "temperature": np.float32(settings.temperature),
    }
    lengths_of_parts: Any = [np.where(owner == part, lengths, 0) for part in range(len(parts))]
    batches = [
        common.PolicyBatch(**layout.arrays, **shared, lengths=own)
        for layout, own in zip(layouts, lengths_of_parts, strict=True)
    ]
    return StepBatches(
        batches=batches,
        num_tokens=sum(layout.num_tokens for layout in layouts),
        num_slots=sum(layout.tokens.size for layout in layouts),
    )


def _lengths_and_live(
    groups: Sequence[trajectory.Group], settings: BatchSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Return the trained length of every sequence, and whether it has to be computed.

    Sequences of length 0 stand behind the real ones where shards need them.
    """
    trajectories = [t for group in groups for t in group.trajectories]
    lengths = np.zeros(_round_up(len(trajectories), settings.num_shards), np.int32)
    live = np.zeros(len(lengths), bool)
    for i, t in enumerate(trajectories):
        lengths[i] = t.trained_length(mask_truncated=settings.mask_truncated)
        live[i] = lengths[i] > 0 and not (settings.skip_dead and t.is_dead)
    return lengths, live


def _pack_group(group: trajectory.Group, span: np.ndarray, live: np.ndarray) -> packing.PackGroup:
    members = [i for i in range(len(span)) if live[span[i]]]
    return packing.PackGroup(
        prompt=group.prompt_ids,
        completions=[group.trajectories[i].trained_ids for i in members],
        indices=[int(span[i]) for i in members],
    )


def _layouts_of_one_shape(
    parts: Sequence[Sequence[packing.PackGroup]], settings: BatchSettings, *, num_sequences: int
) -> list[packing.Layout]:
    """Lay every part down, then once more in the largest shape that any of them needs."""
    make = functools.partial(
        settings.layout_fn,
        num_sequences=num_sequences,
        max_completion_length=settings.max_completion_length,
    )
    layouts = [make(part, row_length=settings.row_length) for part in parts]
    for _ in range(2):  # longer rows may need fewer of them, and then more targets per row
        rows = max(layout.tokens.shape[0] for layout in layouts)
        rows = _round_up(rows, settings.num_shards)
        length = max(layout.tokens.shape[1] for layout in layouts)
        targets = max(layout.targets.shape[0] for layout in layouts)
        targets = _round_up(targets, settings.num_shards)
        if all(
            layout.tokens.shape == (rows, length) and layout.targets.shape == (targets,)
            for layout in layouts
        ):
            break
        layouts = [
            make(part, row_length=length, min_rows=rows, min_targets=targets) for part in parts
        ]
    return layouts


def _padded_rows(
    values: Sequence[np.ndarray], num_sequences: int, settings: BatchSettings
) -> np.ndarray:
    """Return ragged values as ``[S, C]``, with zeros behind."""
    padded = np.zeros((num_sequences, settings.max_completion_length), np.float32)
    for row, value in enumerate(values):
        padded[row, : len(value)] = value
    return padded


def _padded_or_none(
    values: Sequence[np.ndarray | None], num_sequences: int, settings: BatchSettings
) -> np.ndarray | None:
    """Return ragged values as ``[S, C]``, or ``None`` where there are none."""
    given = [value for value in values if value is not None]
    return _padded_rows(given, num_sequences, settings) if len(given) == len(values) else None


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _owners(
    parts: Sequence[Sequence[int]], spans: Sequence[np.ndarray], num_sequences: int
) -> np.ndarray:
    """Return which micro-batch each sequence counts in."""
    owner = np.zeros(num_sequences, np.int32)
    for part, members in enumerate(parts):
        for g in members:
            owner[spans[g]] = part
    return owner
