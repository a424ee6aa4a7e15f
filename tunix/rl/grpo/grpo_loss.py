"""The GRPO loss of one micro-batch: from a model and a batch to sums and weights."""

from flax import nnx

from tunix.rl import common
from tunix.rl.grpo import grpo_config
from tunix.rl.objectives import policy_objective
from tunix.sft import loss_output


def grpo_loss(
    model: nnx.Module,
    batch: common.PolicyBatch,
    *,
    config: grpo_config.GRPOConfig,
) -> loss_output.LossOutput:
    """Return the policy loss plus ``beta`` times the KL, if that is where the KL goes.

    Args:
        model: The policy being trained.
        batch: Tokens, advantages and earlier log-probabilities; ``ref_logps`` are needed
            if ``beta`` is not 0 and the KL goes into the loss.
        config: Which ratio, clip, KL and aggregation.

    Raises:
        ValueError: If ``ref_logps`` are needed and not there.
    """
    return policy_objective.policy_objective(
        model, batch, config=config, kl_beta=config.loss_beta, kl_fn=config.kl_fn
    )
