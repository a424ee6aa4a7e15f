"""One rollout while it is being made: which one it is, and what the engine has sampled for it."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tunix.rl.rollout import base_rollout

Metrics = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled:
    """One call of the engine."""

    output: base_rollout.RolloutOutput
    policy_version: int
    """Optimizer steps that the policy had taken."""


class Turn:
    """A rollout's turn to sample and to score.

    Args:
        step: Rollouts trained on before it, which decides its draws.
        policy_version: Optimizer steps that the policy which samples has taken.
        replay: What the engine returned to this rollout in an earlier process; it is returned
            again, for the weights that sampled it are gone.
    """

    def __init__(self, *, step: int, policy_version: int, replay: Sequence[Sampled] = ()):
        self.step, self.policy_version = step, policy_version
        self.sampled: list[Sampled] = []
        """What the engine has returned so far."""
        self.metrics: list[Metrics] = []
        """What was measured, to be logged with the step that trains on the rollout."""
        self._replay = list(replay)

    def sample(
        self, generate: Callable[[], base_rollout.RolloutOutput], prompts: Sequence[Any]
    ) -> Sampled:
        """Return what the engine samples, or what it sampled in an earlier process.

        Args:
            generate: Has the engine sample.
            prompts: What for.

        Raises:
            ValueError: If it sampled for other prompts then.
        """
        number = len(self.sampled)
        if number < len(self._replay):
            sampled = self._replay[number]
            known = sampled.output.prompts
            if len(known) != len(prompts) or any(
                isinstance(new, str) and new != old for new, old in zip(prompts, known, strict=True)
            ):
                raise ValueError(
                    "cannot resume: the checkpoint has completions of other prompts than train_ds "
                    "has there; pass the same data as before, from its start"
                )
        else:
            sampled = Sampled(output=generate(), policy_version=self.policy_version)
        self.sampled.append(sampled)
        return sampled

    def leave_engine(self) -> None:
        """Let the next rollout sample: this one will not any more."""

    @contextlib.contextmanager
    def scoring(self) -> Iterator[None]:
        """Hold the reward functions, which one rollout uses at a time, in order."""
        yield


class Turns:
    """Which rollout each thread is making."""

    def __init__(self) -> None:
        self._local = threading.local()

    @property
    def current(self) -> Turn | None:
        """The one of this thread."""
        return self._local.__dict__.get("turn")

    @contextlib.contextmanager
    def taking(self, turn: Turn) -> Iterator[None]:
        """Have what this thread samples and measures in the body belong to a rollout."""
        self._local.turn = turn
        try:
            yield
        finally:
            del self._local.turn
