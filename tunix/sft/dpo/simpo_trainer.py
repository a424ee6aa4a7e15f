"""SimPO: pairs of answers compared by their log-probability per token, without a reference."""

import dataclasses
from collections.abc import Iterator

import optax
from flax import nnx

from tunix.data import tokenize
from tunix.perf import span
from tunix.sft import peft_trainer
from tunix.sft.dpo import (
    pair_objective,
    preference_config,
    preference_losses,
    preference_trainer,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimPOTrainingConfig(preference_config.PreferenceTrainingConfig):
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


class SimPOTrainer(preference_trainer.PreferenceTrainer):
    """Trains a policy by SimPO; batches and arguments are those of ``DPOTrainer``."""

    def __init__(
        self,
        model: nnx.Module,
        optimizer: optax.GradientTransformation,
        training_config: SimPOTrainingConfig,
        tokenizer: tokenize.Tokenizer | None = None,
        *,
        metrics_logger: peft_trainer.MetricsLogger | None = None,
        perf_tracer: span.SpanTimer | None = None,
    ):
        super().__init__(
            model,
            None,
            optimizer,
            training_config,
            objective=make_objective(training_config),
            tokenizer=tokenizer,
            metrics_logger=metrics_logger,
            perf_tracer=perf_tracer,
        )


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
