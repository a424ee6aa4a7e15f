"""Settings of group-relative policy optimisation (GRPO) and of its relatives."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from tunix.rl import algorithm_config
from tunix.rl.objectives import kl
from tunix.rl.scoring import reward_shaping
from tunix.utils import config as config_lib

KL_PLACEMENTS = ("loss", "reward", "reward-to-go")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GRPOConfig(algorithm_config.AlgorithmConfig):
    """Settings of group-relative policy optimisation (arXiv:2402.03300)."""

    num_generations: int = 2
    """Completions sampled per prompt; G in the paper."""

    kl_estimator: str | kl.KLEstimator = "k3"
    """A name in ``KL_ESTIMATORS`` or a function like those."""

    kl_placement: Literal["loss", "reward", "reward-to-go"] = "loss"
    """Where ``beta`` times the KL goes: into the ``loss`` of every token; summed over the
    completion out of its ``reward``, before advantages are estimated (RLOO); or out of the
    advantage of the tokens up to it, ``reward-to-go`` (REINFORCE++)."""

    whiten_advantages: bool = False
    """Whether advantages get mean 0 and deviation 1 over all tokens of a rollout."""

    dynamic_sampling: bool = False
    """Whether prompts whose completions all earn the same are replaced by new prompts until the
    batch is full (DAPO)."""

    max_sampling_rounds: int = 10
    """How many batches of prompts a step may draw with ``dynamic_sampling``; it trains on what
    it has then."""

    overlong_buffer: reward_shaping.OverlongBuffer | Mapping[str, Any] | None = None
    """Takes reward from completions that come close to the longest length allowed (DAPO)."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        if self.num_generations == 1 and self._is_group_relative:
            yield "num_generations must be at least 2 to form a group, got 1"
        yield from algorithm_config.choice_problems("kl_estimator", self.kl_estimator)
        if self.kl_placement not in KL_PLACEMENTS:
            hint = config_lib.did_you_mean(str(self.kl_placement), KL_PLACEMENTS)
            yield f"kl_placement {self.kl_placement!r} is not one of {list(KL_PLACEMENTS)}{hint}"
        if self.max_sampling_rounds < 1:
            yield f"max_sampling_rounds must be at least 1, got {self.max_sampling_rounds}"
        if self.dynamic_sampling and self.num_generations == 1:
            yield "dynamic_sampling needs num_generations of at least 2: one completion is no group"
        if self.dynamic_sampling and self.partial_rollout_tokens is not None:
            yield (
                "partial_rollout_tokens does not go with dynamic_sampling, which replaces groups "
                "only when they are finished; leave one of them out"
            )
        if isinstance(self.overlong_buffer, Mapping):
            try:
                reward_shaping.OverlongBuffer.from_mapping(self.overlong_buffer)
            except config_lib.ConfigError as error:
                yield from (f"overlong_buffer: {problem}" for problem in error.problems)

    @property
    def overlong(self) -> reward_shaping.OverlongBuffer | None:
        """How long completions are punished; ``None`` if they are not."""
        chosen = self.overlong_buffer
        if isinstance(chosen, Mapping):
            chosen = reward_shaping.OverlongBuffer.from_mapping(chosen)
        return chosen if chosen is not None and chosen.enable else None

    @property
    def kl_fn(self) -> kl.KLEstimator:
        """The KL estimator as a function."""
        return algorithm_config.resolve("kl_estimator", self.kl_estimator)

    @property
    def loss_beta(self) -> float:
        """Weight of the KL in the loss."""
        return self.beta if self.kl_placement == "loss" else 0.0

    @property
    def reward_beta(self) -> float:
        """Weight of the KL in rewards or advantages."""
        return self.beta if self.kl_placement != "loss" else 0.0

    @property
    def skips_dead_sequences(self) -> bool:
        """Whether a sequence of advantage 0 is known to have no loss and no gradient."""
        return self.loss_beta == 0.0 and self.is_silent_at_zero

    @property
    def _is_group_relative(self) -> bool:
        # Nothing is known of a user's own estimator.
        chosen = self.advantage_estimator
        return isinstance(chosen, str) and chosen not in ("none", "reinforce++")
