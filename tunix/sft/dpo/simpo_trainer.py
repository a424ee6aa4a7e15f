"""SimPO: pairs of answers compared by their log-probability per token, without a reference."""

import dataclasses
from collections.abc import Iterator

from tunix.sft.dpo import (
    pair_objective,
    preference_config,
    preference_losses,
    reference_free_trainer,
)
from tunix.utils import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimPOConfig(config_lib.Config):
    """Settings of SimPO (arXiv:2405.14734)."""

    beta: float = 2.0
    """Scale of the reward, the log-probability per token."""

    simpo_gamma: float = 1.0
    """By how much the chosen answer's reward should lead."""

    label_smoothing: float = 0.0
    """Probability that a label is wrong."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        yield from preference_config.positive_problems(beta=self.beta)
        yield from preference_config.smoothing_problems(self.label_smoothing)
        if self.simpo_gamma < 0:
            yield f"simpo_gamma must not be negative, got {self.simpo_gamma}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimPOTrainingConfig(SimPOConfig, preference_config.PreferenceTrainingConfig):
    """The same, and those of the loop."""


def make_objective(config: SimPOTrainingConfig) -> pair_objective.PairObjective:
    """Return what a config trains."""
    settings = {
        "beta": config.beta,
        "simpo_gamma": config.simpo_gamma,
        "label_smoothing": config.label_smoothing,
    }

    def reward(pairs: preference_losses.Pairs):
        return config.beta * pairs.chosen_mean, config.beta * pairs.rejected_mean

    term = pair_objective.Term("simpo", 1.0, settings)
    return pair_objective.PairObjective(terms=(term,), reward=reward)


class SimPOTrainer(reference_free_trainer.ReferenceFreeTrainer[SimPOTrainingConfig]):
    """Trains a policy by SimPO, on the batches of ``DPOTrainer``."""

    objective_of = staticmethod(make_objective)
