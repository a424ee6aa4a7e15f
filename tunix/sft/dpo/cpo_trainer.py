"""CPO: pairs of answers under a uniform reference, plus the likelihood of the chosen one."""

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
class CPOConfig(config_lib.Config):
    """Settings of CPO (arXiv:2401.08417)."""

    beta: float = 0.1
    """Scale of the reward, the log-probability of the answer."""

    cpo_alpha: float = 1.0
    """Weight of the chosen answer's negative log-likelihood per token; 0 for none."""

    label_smoothing: float = 0.0
    """Probability that a label is wrong."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        yield from preference_config.positive_problems(beta=self.beta)
        yield from preference_config.smoothing_problems(self.label_smoothing)
        if self.cpo_alpha < 0:
            yield f"cpo_alpha must not be negative, got {self.cpo_alpha}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CPOTrainingConfig(CPOConfig, preference_config.PreferenceTrainingConfig):
    """The same, and those of the loop."""


def make_objective(config: CPOTrainingConfig) -> pair_objective.PairObjective:
    """Return what a config trains."""
    settings = {"beta": config.beta, "label_smoothing": config.label_smoothing}
    terms = [pair_objective.Term("cpo", 1.0, settings)]
    if config.cpo_alpha:
        terms.append(pair_objective.Term("sft", config.cpo_alpha, settings))

    def reward(pairs: preference_losses.Pairs):
        return config.beta * pairs.chosen, config.beta * pairs.rejected

    return pair_objective.PairObjective(terms=tuple(terms), reward=reward)


class CPOTrainer(reference_free_trainer.ReferenceFreeTrainer[CPOTrainingConfig]):
    """Trains a policy by CPO, on the batches of ``DPOTrainer``."""

    objective_of = staticmethod(make_objective)
