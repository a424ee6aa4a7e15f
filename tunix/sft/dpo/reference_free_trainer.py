"""What trainers of objectives without a reference share: their arguments."""

import abc
from typing import Generic, TypeVar

import optax
from flax import nnx

from tunix.data import tokenize
from tunix.perf import span
from tunix.sft import peft_trainer
from tunix.sft import training_config as training_config_lib
from tunix.sft.dpo import preference_trainer

ConfigT = TypeVar("ConfigT", bound=training_config_lib.TrainingConfig)


class ReferenceFreeTrainer(preference_trainer.PreferenceTrainer, abc.ABC, Generic[ConfigT]):
    """A :class:`PreferenceTrainer` whose objective follows from its config alone.

    Args:
        model: The policy, or the reward model.
        optimizer: Gets the gradient of the mean loss of each optimizer step.
        training_config: Settings of the loop and of the objective.
        tokenizer: Needed for batches of strings only; a ``TokenizerAdapter``.
        metrics_logger: Where metrics go; by default made from the config.
        perf_tracer: Adds up where the time goes.
    """

    def __init__(
        self,
        model: nnx.Module,
        optimizer: optax.GradientTransformation,
        training_config: ConfigT,
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
            objective=self.objective_of(training_config),
            tokenizer=tokenizer,
            metrics_logger=metrics_logger,
            perf_tracer=perf_tracer,
        )

    @staticmethod
    @abc.abstractmethod
    def objective_of(config: ConfigT, /) -> preference_trainer.Objective:
        """Return what a config trains."""
