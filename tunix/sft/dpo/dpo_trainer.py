"""DPO and its relatives: learning from pairs of answers with any mix of their losses."""

import optax
from flax import nnx

from tunix.data import tokenize
from tunix.perf import span
from tunix.sft import peft_trainer
from tunix.sft.dpo import (
    dpo_config,
    dpo_loss,
    inputs,
    pair_objective,
    preference_losses,
    preference_trainer,
)

DPOTrainingConfig = dpo_config.DPOTrainingConfig
DataInput = inputs.DataInput
TrainingInput = inputs.TrainingInput
TrainExample = dpo_loss.TrainExample
compute_logps = dpo_loss.compute_logps
dpo_loss_fn = dpo_loss.dpo_loss_fn
process_dpo_record = inputs.process_dpo_record


class DPOTrainer(preference_trainer.PreferenceTrainer):
    """Trains a policy on pairs of a chosen and a rejected answer.

    Batches are :class:`~tunix.data.preference.preference_batching.PairBatch` (from
    :mod:`tunix.data.preference.preference_batches`), :class:`TrainingInput` or :class:`DataInput`.

    Args:
        model: The policy.
        ref_model: The reference. ``None`` with ``algorithm="orpo"``, with LoRA (the policy
            without adapters is the reference), or where the data holds its log-probabilities.
        optimizer: Gets the gradient of the mean loss of each optimizer step.
        training_config: Settings of the loop and of the losses.
        tokenizer: Needed for batches of strings (:class:`DataInput`) only.
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
        training_config: DPOTrainingConfig,
        tokenizer: tokenize.Tokenizer | None = None,
        *,
        metrics_logger: peft_trainer.MetricsLogger | None = None,
        perf_tracer: span.SpanTimer | None = None,
    ):
        super().__init__(
            model,
            ref_model,
            optimizer,
            training_config,
            objective=make_objective(training_config),
            offload_reference=training_config.offload_reference,
            tokenizer=tokenizer,
            metrics_logger=metrics_logger,
            perf_tracer=perf_tracer,
        )


def make_objective(config: DPOTrainingConfig) -> pair_objective.PairObjective:
    """Return what a config trains."""

    def log_ratios(pairs: preference_losses.Pairs):
        return config.beta * pairs.chosen_ratio, config.beta * pairs.rejected_ratio

    def log_probabilities(pairs: preference_losses.Pairs):
        return config.lambda_orpo * pairs.chosen_mean, config.lambda_orpo * pairs.rejected_mean

    reward = log_probabilities if config.algorithm == "orpo" else log_ratios
    return pair_objective.PairObjective(terms=config.terms, reward=reward)


DpoTrainingConfig = ORPOTrainingConfig = OrpoTrainingConfig = DPOTrainingConfig
DpoTrainer = ORPOTrainer = OrpoTrainer = DPOTrainer
