"""From groups of trajectories to the chunks of one optimizer step.

All chunks have the shape that the settings say, and each trajectory lies in exactly one of them.
Trajectories that are known to have no loss are not laid down at all; their weight counts.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from tunix.rl import common, trajectory
from tunix.rl.batches import packing
from tunix.rl.objectives import aggregation


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """What shape chunks have and what counts in them."""

    shape: packing.Shape
    temperature: float
    aggregate: aggregation.Aggregation
    """What every token weighs."""
    max_completion_length: int
    mask_truncated: bool
    skip_dead: bool
    """Whether trajectories of advantage 0 are left out of the rows."""
    is_sharded: bool = False
    """Whether several devices share the rows: padded targets are then computed like others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepBatches:
    """The chunks of one optimizer step and how well they are filled."""

    batches: Sequence[common.PolicyBatch]
    members: Sequence[Sequence[int]]
    """Of each chunk, which trajectories its targets belong to, in their order."""
    lengths: Sequence[int]
    """Trained tokens of every trajectory."""
    weight: float
    """What counts of trajectories that are in no chunk."""
    num_tokens: int
    """Tokens that are not padding, over all rows."""

    @property
    def num_slots(self) -> int:
        """Tokens and padding."""
        return sum(batch.tokens.size for batch in self.batches)

    def per_trajectory(
        self, fn: Callable[[common.PolicyBatch], Float[Array, " N"]]
    ) -> list[Float[np.ndarray, " N"]]:
        """Return what ``fn`` says of the trained tokens of each trajectory, a chunk at a time.

        It is 0 of those that are in no chunk.
        """
        found = [np.zeros(length, np.float32) for length in self.lengths]
        computed = [fn(batch) for batch in self.batches]
        for values, members in zip(map(np.asarray, computed), self.members, strict=True):
            ends = itertools.accumulate(self.lengths[i] for i in members)
            for i, end in zip(members, ends, strict=True):
                found[i] = values[end - self.lengths[i] : end]
        return found


def make_step_batches(
    groups: Sequence[trajectory.Group],
    settings: BatchSettings,
    *,
    on_policy: bool,
    at_least_one: bool = False,
) -> StepBatches:
    """Return the chunks that train on ``groups`` once.

    Args:
        groups: Trajectories with advantages.
        settings: Shapes and what counts.
        on_policy: Whether ratios start from the policy that is trained, which is the one that
            sampled when nothing was updated in between; else from the trainer's earlier
            log-probabilities where they are known, and from the sampler's where not.
        at_least_one: Whether there is a chunk without targets where none is needed: it shows what
            the others look like.
    """
    members = [one for group in groups for one in group.trajectories]
    counted = [one.trained_length(mask_truncated=settings.mask_truncated) for one in members]
    tokens, sequences = aggregation.weigh(
        settings.aggregate,
        np.asarray(counted, np.int64),
        max_length=settings.max_completion_length,
    )
    live = [
        count > 0 and not (settings.skip_dead and one.is_dead)
        for count, one in zip(counted, members, strict=True)
    ]
    packed, numbers = [], itertools.count()
    for group in groups:
        packed += _pack_groups({next(numbers): one for one in group.trajectories}, live)
    layouts = packing.pack_groups(packed, settings.shape)
    known = (members, tokens, sequences, settings, on_policy)
    batches = [_batch(layout, *known) for layout in layouts]
    if at_least_one and not layouts:
        shown = _pack_groups(dict(enumerate(members)), [one.num_trained > 0 for one in members])
        batches = [
            _without_targets(_batch(layout, *known))
            for layout in packing.pack_groups(shown, settings.shape)[:1]
        ]
    return StepBatches(
        batches=batches,
        members=[layout.members for layout in layouts] or [[] for _ in batches],
        lengths=[one.num_trained for one in members],
        weight=float(sequences[~np.asarray(live, bool)].sum()),
        num_tokens=sum(layout.num_tokens for layout in layouts),
    )


def _without_targets(batch: common.PolicyBatch) -> common.PolicyBatch:
    """Return the chunk with targets that count nowhere."""
    empty = {name: np.zeros_like(getattr(batch, name)) for name in ("mask", "weights", "weight")}
    num_targets = None if batch.num_targets is None else np.int32(0)
    return dataclasses.replace(batch, num_targets=num_targets, **empty)


def _pack_groups(
    members: Mapping[int, trajectory.Trajectory], live: Sequence[bool]
) -> list[packing.PackGroup]:
    """Return those of a group that are computed; neighbours with one prompt share it."""
    groups: list[packing.PackGroup] = []
    for i, one in members.items():
        if not live[i]:
            continue
        answer = packing.Answer.of(i, one.answer_ids, one.is_trained)
        if groups and np.array_equal(groups[-1].prompt, one.prompt_ids):
            groups[-1] = dataclasses.replace(groups[-1], answers=[*groups[-1].answers, answer])
        else:
            groups.append(packing.PackGroup(prompt=one.prompt_ids, answers=[answer]))
    return groups


def _batch(
    layout: packing.Layout,
    members: Sequence[trajectory.Trajectory],
    token_weights: np.ndarray,
    sequence_weights: np.ndarray,
    settings: BatchSettings,
    on_policy: bool,
) -> common.PolicyBatch:
    """Return a chunk with what is known of its tokens."""
    own = [members[i] for i in layout.members]
    size = len(layout.targets)

    def flat(values: Sequence[np.ndarray | None]) -> np.ndarray | None:
        given = [value for value in values if value is not None]
        return packing.filled(given, size, np.float32) if len(given) == len(values) else None

    sampler_logps, old_logps = (
        flat([t.trained_logps for t in own]),
        flat([t.old_logps for t in own]),
    )
    known: dict[str, Any] = {
        "num_targets": None if settings.is_sharded else np.int32(layout.mask.sum()),
        "weights": flat(
            [np.full(members[i].num_trained, token_weights[i]) for i in layout.members]
        ),
        "weight": np.float32(sum(sequence_weights[i] for i in layout.members)),
        "advantages": flat([t.advantage_of_tokens for t in own]),
        "sampler_logps": sampler_logps,
        "old_logps": sampler_logps if old_logps is None else old_logps,
        "on_policy": np.bool_(on_policy),
        "temperature": np.float32(settings.temperature),
        **{
            name: flat([getattr(t, name) for t in own])
            for name in ("ref_logps", "values", "returns")
        },
    }
    return common.PolicyBatch(**layout.arrays, **known)
