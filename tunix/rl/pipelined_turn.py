"""A rollout in the pipeline: its weights, its place in the order, and what it yields."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flax import nnx

from tunix.rl import dynamic_sampling, in_flight, rollout_turn, trajectory
from tunix.rl.rollout import base_rollout

if TYPE_CHECKING:
    from tunix.rl import rollout_pipeline


@dataclasses.dataclass(frozen=True, kw_only=True)
class Version:
    """The policy after so many steps."""

    number: int
    weights: nnx.State
    policy_version: int
    groups: Sequence[trajectory.Group]
    """What became of the rollout of the last step."""


class Rollout:
    """A rollout that has begun; what several threads look at is guarded by the pipeline."""

    def __init__(
        self,
        pipeline: "rollout_pipeline.RolloutPipeline",
        flight: in_flight.InFlight,
        version: Version,
    ):
        self.flight = flight
        self.version: Version | None = version
        """Its weights, until the engine has them."""
        self.turn = PipelinedTurn(pipeline, self, version.policy_version)
        self.holds = contextlib.ExitStack()
        """Its place in the order, and the engine, as long as it samples."""
        self.batch: Mapping[str, Any] | None = None
        self.collected: dynamic_sampling.Collected | None = None
        """What it yields once it is done; ``None`` at the end of the data."""
        self.error: BaseException | None = None
        self.is_sampled = self.is_done = False


class PipelinedTurn(rollout_turn.Turn):
    """A turn that leaves the engine to the next rollout as soon as it can."""

    def __init__(
        self, pipeline: "rollout_pipeline.RolloutPipeline", rollout: Rollout, policy_version: int
    ):
        flight = rollout.flight
        super().__init__(step=flight.step, policy_version=policy_version, replay=flight.sampled)
        self._pipeline, self._rollout = pipeline, rollout

    def sample(
        self, generate: Callable[[], base_rollout.RolloutOutput], prompts: Sequence[Any]
    ) -> rollout_turn.Sampled:
        """Return what the engine samples; see the base class."""
        if self._rollout.is_sampled:
            raise RuntimeError(
                "this learner's collect samples more than once in a step; let its samples_once "
                "return False, so that the rollouts of other steps wait for it"
            )
        sampled = super().sample(generate, prompts)
        if self._pipeline.samples_once:
            self.leave_engine()
        return sampled

    def leave_engine(self) -> None:
        """Let the next rollout sample: this one will not any more."""
        self._pipeline.leave_engine(self._rollout)

    @contextlib.contextmanager
    def scoring(self) -> Iterator[None]:
        """Wait until earlier rollouts have been scored, then hold the reward functions."""
        with self._pipeline.scoring(self.step):
            yield
