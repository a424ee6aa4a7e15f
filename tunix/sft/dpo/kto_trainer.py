"""KTO: learning from answers that are good or bad, without pairs."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import optax
from flax import nnx

from tunix.data.preference import preference_batching
from tunix.perf import span
from tunix.sft import peft_trainer, training_config
from tunix.sft.dpo import kto_objective, preference_config, preference_trainer
from tunix.utils import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class KTOConfig(config_lib.Config):
    """Settings of KTO (arXiv:2402.01306)."""

    beta: float = 0.1
    """How fast utility saturates as the policy moves away from the reference."""

    desirable_weight: float = 1.0
    """Weight of good answers. Where good and bad ones are not alike in number, the paper keeps
    the two sums of weights within a factor of 4/3 (section 4.2)."""

    undesirable_weight: float = 1.0
    """Weight of bad answers."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        yield from preference_config.positive_problems(
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class KTOTrainingConfig(KTOConfig, training_config.TrainingConfig):
    """The same, and those of the loop."""

    offload_reference: bool = False
    """Keep ``ref_model`` in host memory, and on the devices only while a batch needs it."""


class KTOTrainer(preference_trainer.PreferenceTrainer):
    """Trains a policy on answers that are good or bad.

    Batches are :class:`~tunix.data.preference.preference_batching.RatingBatch`, from
    :func:`tunix.data.preference.preference_batches.rating_batches`.

    Args:
        model: The policy.
        ref_model: The reference. ``None`` with LoRA (the policy without adapters is the
            reference), or where the data holds its log-probabilities.
        optimizer: Gets the gradient of the mean loss of each optimizer step.
        training_config: Settings of the loop and of the loss.
        metrics_logger: Where metrics go; by default made from the config.
        perf_tracer: Adds up where the time goes.

    Raises:
        ValueError: If the reference is the policy itself, or there is none to offload.
    """

    def __init__(
        self,
        model: nnx.Module,
        ref_model: nnx.Module | None,
        optimizer: optax.GradientTransformation,
        training_config: KTOTrainingConfig,
        *,
        metrics_logger: peft_trainer.MetricsLogger | None = None,
        perf_tracer: span.SpanTimer | None = None,
    ):
        super().__init__(
            model,
            ref_model,
            optimizer,
            training_config,
            objective=kto_objective.KTOObjective(
                beta=training_config.beta,
                desirable_weight=training_config.desirable_weight,
                undesirable_weight=training_config.undesirable_weight,
            ),
            offload_reference=training_config.offload_reference,
            metrics_logger=metrics_logger,
            perf_tracer=perf_tracer,
        )

    def read_batch(self, batch: Any) -> preference_batching.RatingBatch:
        """Return the batch.

        Raises:
            TypeError: If it holds no ratings.
        """
        if isinstance(batch, preference_batching.RatingBatch):
            return batch
        raise TypeError(
            f"a batch is a {type(batch).__name__}; KTO takes a RatingBatch, see "
            "tunix.data.preference.preference_batches.rating_batches"
        )
