"""One rollout while it is being made: which one it is, and what it samples and scores with."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, PRNGKeyArray

from tunix.rl import trajectory
from tunix.rl.collecting import prompt_batch
from tunix.rl.collecting import sampler as sampler_lib
from tunix.rl.collecting import scorer as scorer_lib
from tunix.rl.rollout import base_rollout

Columns = Mapping[str, Sequence[Any]]
"""A batch: columns of equal length, ``prompts`` among them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled:
    """One call of the engine."""

    output: base_rollout.RolloutOutput
    policy_version: int
    """Optimizer steps that the policy had taken."""


class Rollout:
    """What a collector makes a rollout with.

    Args:
        step: Rollouts trained on before it, which decides its draws.
        policy_version: Optimizer steps that the policy which samples has taken.
        sampler: Samples from the engine.
        scorer: Makes groups of completions.
        draw: Returns the next batch of the data, or ``None`` at its end.
        replay: What the engine returned to this rollout in an earlier process; it is returned
            again, for the weights that sampled it are gone.
        release: Gives the engine to the next rollout.
        scoring: Holds the reward functions, which one rollout uses at a time, in order.
    """

    def __init__(
        self,
        *,
        step: int,
        policy_version: int,
        sampler: sampler_lib.Sampler,
        scorer: scorer_lib.Scorer,
        draw: Callable[[], Columns | None] = lambda: None,
        replay: Sequence[Sampled] = (),
        release: Callable[[], None] = lambda: None,
        scoring: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ):
        self.step, self.policy_version = step, policy_version
        self.sampler, self.scorer = sampler, scorer
        self.sampled: list[Sampled] = []
        """What the engine has returned so far."""
        self.metrics: list[Mapping[str, Any]] = []
        """What was measured, to be logged with the step that trains on the rollout."""
        self._draw, self._replay = draw, replay
        self._release, self._scoring = release, scoring
        self._is_released = False

    def draw(self) -> Columns | None:
        """Return the next batch of the data, or ``None`` at its end."""
        self._require_engine()
        return self._draw()

    def sample(self, batch: Columns) -> Sampled:
        """Return completions of every prompt of a checked batch; each call draws differently.

        Raises:
            ValueError: If the completions of an earlier process are those of other prompts.
        """
        prompts = batch[prompt_batch.PROMPTS]
        return self._sampled(lambda key: self.sampler.complete(prompts, key=key), prompts)

    def extend(
        self, token_ids: Sequence[Int[np.ndarray, " T"]], *, num_samples: int, max_tokens: int
    ) -> Sampled:
        """Return what the policy says after each of these texts; each call draws differently.

        Args:
            token_ids: A prompt, or a conversation so far.
            num_samples: Continuations of each.
            max_tokens: Tokens after which one is cut off.
        """

        def extended(key: PRNGKeyArray) -> base_rollout.RolloutOutput:
            return self.sampler.extend(
                token_ids, num_samples=num_samples, max_tokens=max_tokens, key=key
            )

        return self._sampled(extended, [""] * len(token_ids))

    def score(
        self,
        output: base_rollout.RolloutOutput,
        columns: Columns,
        *,
        policy_version: int | None = None,
    ) -> list[trajectory.Group]:
        """Return completions as groups, rewarded and with advantages.

        Args:
            output: The completions.
            columns: The batch of their prompts.
            policy_version: That of the policy which sampled, if not the rollout's.
        """
        version = self.policy_version if policy_version is None else policy_version
        with self._scoring():
            groups, metrics = self.scorer.score(output, columns, policy_version=version)
            self.metrics += metrics
        return groups

    def groups(self, batch: Columns) -> list[trajectory.Group]:
        """Return the groups of a batch: checked, sampled and scored."""
        columns = self.scorer.check(batch)
        sampled = self.sample(columns)
        return self.score(sampled.output, columns, policy_version=sampled.policy_version)

    def release(self) -> None:
        """Let the next rollout sample: this one draws and samples nothing any more.

        Without it the next rollout waits until this one is complete.
        """
        if not self._is_released:
            self._is_released = True
            self._release()

    def _sampled(
        self,
        sample: Callable[[PRNGKeyArray], base_rollout.RolloutOutput],
        prompts: Sequence[Any],
    ) -> Sampled:
        self._require_engine()
        number = len(self.sampled)
        if number < len(self._replay):
            sampled = self._replay[number]
            _require_same(prompts, sampled.output.prompts)
        else:
            output = sample(self.sampler.key(self.step, number))
            sampled = Sampled(output=output, policy_version=self.policy_version)
        self.sampled.append(sampled)
        return sampled

    def _require_engine(self) -> None:
        if self._is_released:
            raise RuntimeError(
                "this collector draws or samples after it has called release(), when the rollouts "
                "of later steps do; call it behind the last draw and sample, or not at all"
            )


def _require_same(prompts: Sequence[Any], known: Sequence[str]) -> None:
    if len(known) != len(prompts) or any(
        isinstance(new, str) and new != old for new, old in zip(prompts, known, strict=True)
    ):
        raise ValueError(
            "cannot resume: the checkpoint has completions of other prompts than train_ds "
            "has there; pass the same data as before, from its start"
        )
