"""Training a reward model on pairs of answers (Bradley-Terry)."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tunix.data.preference import preference_batching
from tunix.sft import loss_output, memory_estimate
from tunix.sft.dpo import (
    pair_objective,
    preference_config,
    preference_losses,
    reference_free_trainer,
)
from tunix.sft.dpo import reward_model as reward_model_lib
from tunix.utils import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig(config_lib.Config):
    """Settings of reward models."""

    center_rewards_coefficient: float | None = None
    """Weight of ``(R(y_w) + R(y_l)) ** 2``, which pulls rewards towards 0 without telling answers
    apart (arXiv:2312.09244); none when unset."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        if self.center_rewards_coefficient is not None:
            yield from preference_config.positive_problems(
                center_rewards_coefficient=self.center_rewards_coefficient
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardTrainingConfig(RewardConfig, preference_config.PreferenceTrainingConfig):
    """The same, and those of the loop."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardObjective:
    """The Bradley-Terry loss, with the margins that the data gives."""

    center_rewards_coefficient: float | None = None

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
        rewards = model.rewards(batch.rows, dropout_key=model.decoder.dropout_key())
        chosen, rejected = rewards.reshape(-1, 2).T
        margin = jnp.asarray(batch.margin).reshape(-1)
        losses = preference_losses.bradley_terry(chosen, rejected, margin)
        if self.center_rewards_coefficient is not None:
            losses = losses + self.center_rewards_coefficient * (chosen + rejected) ** 2
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
    :mod:`tunix.data.preference.preference_batches` must be made with ``with_last=True``.
    """

    @staticmethod
    def objective_of(config: RewardTrainingConfig, /) -> RewardObjective:
        """Return what a config trains."""
        return RewardObjective(center_rewards_coefficient=config.center_rewards_coefficient)

    def memory_estimate(self, rows: int, row_length: int) -> memory_estimate.MemoryEstimate:
        """Return what steps will take, in bytes, the decoder's activations included."""
        found, model = super().memory_estimate(rows, row_length), self.model
        assert isinstance(model, reward_model_lib.RewardModel)
        activations = memory_estimate.activation_bytes(model.decoder.config, rows * row_length)
        return dataclasses.replace(found, activations=activations)

    @property
    def reads_last_token(self) -> bool:
        """True: the reward is read off an answer's last token."""
        return True
