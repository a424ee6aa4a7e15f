"""Training a reward model on pairs of answers (Bradley-Terry)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tunix.data import preference_batching
from tunix.sft import loss_output
from tunix.sft.dpo import (
    pair_objective,
    preference_config,
    preference_losses,
    reference_free_trainer,
)
from tunix.sft.dpo import reward_model as reward_model_lib

RewardTrainingConfig = preference_config.PreferenceTrainingConfig


@dataclasses.dataclass(frozen=True)
class RewardObjective:
    """The Bradley-Terry loss, with the margins that the data gives."""

    needs_reference = False
    is_coupled = False

    def statistics(self, model: Any, batch: Any) -> None:
        """Return nothing: pairs do not depend on each other."""

    def couple(self, statistics: Sequence[Any]) -> list[None]:
        """Return nothing for each micro-batch."""
        return [None] * len(statistics)

    def loss(
        self,
        model: reward_model_lib.RewardModel,
        batch: preference_batching.PairBatch,
        context: None = None,
    ) -> loss_output.LossOutput:
        """Return the summed loss of the pairs, their number and metrics."""
        valid = jnp.asarray(batch.rows.lengths).reshape(-1, 2)[:, 0] > 0
        chosen, rejected = model.rewards(batch.rows).reshape(-1, 2).T
        margin = jnp.asarray(batch.margin).reshape(-1)
        losses = preference_losses.bradley_terry(chosen, rejected, margin)
        metrics = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).astype(jnp.float32),
        }
        return loss_output.LossOutput(
            loss_sum=jnp.where(valid, losses, 0.0).sum(),
            weight_sum=valid.sum().astype(jnp.float32),
            metrics=jax.lax.stop_gradient(pair_objective.weighted_means(metrics, valid)),
        )


class RewardTrainer(reference_free_trainer.ReferenceFreeTrainer[RewardTrainingConfig]):
    """Trains a reward model so that chosen answers get more than rejected ones.

    Batches are those of ``DPOTrainer``; rows of
    :func:`tunix.data.preference_batches.pair_batches` must be made with ``with_last=True``.
    """

    @staticmethod
    def objective_of(config: RewardTrainingConfig, /) -> RewardObjective:
        """Return the objective, which has no settings."""
        return RewardObjective()

    @property
    def reads_last_token(self) -> bool:
        """True: the reward is read off an answer's last token."""
        return True
