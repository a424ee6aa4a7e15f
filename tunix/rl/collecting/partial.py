"""Rollouts of which the slow completions are carried over to later steps."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from tunix.generate import completion
from tunix.rl import trajectory
from tunix.rl.collecting import collector, partial_rollout, prompt_batch, rollout_state
from tunix.rl.rollout import base_rollout


class PartialCollector(collector.Collector):
    """Returns as many groups as a batch has prompts: those that are finished first.

    A batch more than that is under way; so the first step draws two, and the last ones, when
    the data has ended and the batch is empty, finish what is left.

    Args:
        stretch: Tokens that a completion is sampled at a time.
        limit: Tokens after which it is cut off.

    Raises:
        ConfigError: If the limit is no whole number of stretches.
    """

    def __init__(self, stretch: int, limit: int):
        partial_rollout.check(stretch, limit)
        self._stretch, self._limit = stretch, limit

    def resume(self, carried: Sequence[partial_rollout.Group]) -> None:
        """Go on with what a checkpoint says was carried over."""
        self.carried = carried

    def collect(
        self, batch: rollout_state.Columns, rollout: rollout_state.Rollout
    ) -> collector.Collected:
        """Return the groups that are finished, and carry the others over."""
        wanted = len(batch[prompt_batch.PROMPTS]) if batch else len(self.carried)
        pool = [*self.carried, *_groups(batch, rollout)]
        if batch and not self.carried and (more := rollout.draw()) is not None:
            pool += _groups(more, rollout)

        def generate(
            prompts: Sequence[Int[np.ndarray, " T"]], num_samples: int
        ) -> tuple[Sequence[completion.Completion], int]:
            sampled = rollout.extend(prompts, num_samples=num_samples, max_tokens=self._stretch)
            return sampled.output.completions, sampled.policy_version

        taken, self.carried = partial_rollout.finish(
            pool, generate, wanted=wanted, limit=self._limit
        )
        carried = self.carried
        rollout.release()
        columns = {name: [group.row[name] for group in taken] for name in taken[0].row}
        samples = [sample for group in taken for sample in group.samples]
        done = [sample.completion for sample in samples]
        output = base_rollout.RolloutOutput(
            prompts=[group.prompt for group in taken],
            prompt_tokens=[group.prompt_ids for group in taken],
            completions=done,
            text=[rollout.sampler.text(one) for one in done],
        )
        groups = rollout.score(output, columns)
        return collector.Collected(
            groups=_with_versions(groups, [sample.versions for sample in samples]),
            metrics={
                "carried_groups": float(len(carried)),
                "carried_tokens": float(
                    sum(len(sample.token_ids) for group in carried for sample in group.samples)
                ),
            },
        )


def _groups(
    batch: rollout_state.Columns, rollout: rollout_state.Rollout
) -> list[partial_rollout.Group]:
    """Return the prompts of a batch as groups without tokens."""
    if not batch:
        return []
    columns = rollout.scorer.check(batch)
    count = rollout.sampler.num_samples
    return [
        partial_rollout.Group(
            prompt=one.text,
            prompt_ids=one.token_ids,
            row={name: values[i] for name, values in columns.items()},
            samples=(partial_rollout.Sample.empty(),) * count,
        )
        for i, one in enumerate(rollout.sampler.encode(columns[prompt_batch.PROMPTS]))
    ]


def _with_versions(
    groups: Sequence[trajectory.Group], versions: Sequence[Int[np.ndarray, " T"]]
) -> list[trajectory.Group]:
    """Return the groups with the version of every token."""
    rows = iter(versions)

    def known(one: trajectory.Trajectory) -> trajectory.Trajectory:
        own = next(rows)
        prompt, sampled = one.spans
        return dataclasses.replace(one, spans=(prompt, dataclasses.replace(sampled, versions=own)))

    return [
        dataclasses.replace(group, trajectories=[known(one) for one in group.trajectories])
        for group in groups
    ]
