"""How the groups of one step come about: a strategy, apart from what is learned from them."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence

from tunix.rl import trajectory
from tunix.rl.collecting import partial_rollout, rollout_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collected:
    """The groups of a step."""

    groups: Sequence[trajectory.Group]
    """What is trained on."""
    discarded: Sequence[trajectory.Group] = ()
    """What was sampled besides: groups without signal, and those beyond a full batch."""
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Collector(abc.ABC):
    """Makes rollouts; it knows neither the loss nor what a rollout is trained with.

    What a rollout draws, samples and scores goes through the :class:`Rollout` that is passed,
    so that a collector needs no state, and can be asked for a rollout ahead of its step.
    """

    takes_one_batch: bool = False
    """Whether it never draws another batch than that of the step, so that the length of the
    data is the number of steps."""

    carried: Sequence[partial_rollout.Group] = ()
    """Prompts whose completions go on in later steps; a checkpoint holds them."""

    @abc.abstractmethod
    def collect(self, batch: rollout_state.Columns, rollout: rollout_state.Rollout) -> Collected:
        """Return the groups of a step.

        Args:
            batch: The prompts of the step; empty if the data has ended and there are only those
                that were carried over.
            rollout: What to draw further batches, to sample and to score with.
        """

    def resume(self, carried: Sequence[partial_rollout.Group]) -> None:
        """Go on with what a checkpoint says was carried over.

        Raises:
            ValueError: If there is something, and this collector carries nothing over.
        """
        if carried:
            raise ValueError(
                f"cannot resume: the checkpoint has {len(carried)} prompts with unfinished "
                "completions; set partial_rollout_tokens again"
            )


class WholeCollector(Collector):
    """Samples every completion of one batch of prompts to its end."""

    takes_one_batch = True

    def collect(self, batch: rollout_state.Columns, rollout: rollout_state.Rollout) -> Collected:
        """Return the groups of the batch."""
        columns = rollout.scorer.check(batch)
        sampled = rollout.sample(columns)
        rollout.release()
        groups = rollout.score(sampled.output, columns, policy_version=sampled.policy_version)
        return Collected(groups=groups)
