"""The GRPO loss of one micro-batch: from a model and a batch to sums and weights."""

import jax
import jax.numpy as jnp
from flax import nnx

from tunix.rl import common, losses
from tunix.rl.grpo import grpo_config
from tunix.sft import loss_output


def grpo_loss(
    model: nnx.Module,
    batch: common.PolicyBatch,
    *,
    config: grpo_config.GRPOConfig,
) -> loss_output.LossOutput:
    """Return the clipped surrogate plus ``beta`` times the KL to the reference.

    Sequences that are not live count in the weight, and have neither loss nor gradient.
    Metrics count the tokens whose log-probabilities were computed.

    Args:
        model: The policy being trained.
        batch: Tokens, advantages and earlier log-probabilities; ``ref_logps`` are needed
            if ``beta`` is not 0.
        config: Which ratio, clip, KL and aggregation.

    Raises:
        ValueError: If ``beta`` is not 0 and there are no ``ref_logps``.
    """
    computed = batch.computed
    policy = common.policy_logps(model, batch, with_entropy=config.log_entropy)
    logps = policy.logps
    old_logps = jax.lax.stop_gradient(logps) if batch.old_logps is None else batch.old_logps
    clip_low, clip_high = config.clip_range

    log_ratio = config.importance_fn(logps, old_logps, computed)
    per_token, metrics = config.policy_loss(
        log_ratio, batch.advantages, computed, clip_low=clip_low, clip_high=clip_high
    )
    if config.beta != 0.0:
        if batch.ref_logps is None:
            raise ValueError(f"beta is {config.beta}, but the batch has no ref_logps")
        # Mask the inputs, not only the result: 0 * NaN is NaN in the backward pass.
        divergence = config.kl_fn(
            jnp.where(computed, logps, 0.0), jnp.where(computed, batch.ref_logps, 0.0)
        )
        per_token = per_token + config.beta * divergence
        metrics = metrics | {"kl": losses.masked_sum(divergence, computed)}
    if policy.entropy is not None:
        metrics = metrics | {"entropy": losses.masked_sum(policy.entropy, computed)}
    mismatch, worst_mismatch = losses.sampler_mismatch(logps, batch.sampler_logps, computed)
    largest_ratio = jnp.exp(jnp.where(computed, log_ratio, 0.0)).max()

    loss_sum, weight_sum = config.aggregate(
        per_token, batch.mask, max_length=batch.sampler_logps.shape[1]
    )
    return loss_output.LossOutput(
        loss_sum=loss_sum,
        weight_sum=weight_sum,
        metrics=jax.lax.stop_gradient(metrics | mismatch),
        maxima=jax.lax.stop_gradient({"ratio_max": largest_ratio} | worst_mismatch),
    )
