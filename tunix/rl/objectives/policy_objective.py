"""The policy's loss on one micro-batch: from a model and a batch to sums and weights."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tunix.rl import algorithm_config, common
from tunix.rl.objectives import kl, losses, rollout_correction
from tunix.sft import loss_output


def policy_objective(
    model: nnx.Module,
    batch: common.PolicyBatch,
    *,
    config: algorithm_config.AlgorithmConfig,
    kl_beta: float = 0.0,
    kl_fn: kl.KLEstimator = kl.k3,
) -> loss_output.LossOutput:
    """Return the policy loss, plus the KL to the reference, minus the entropy bonus.

    Metrics count tokens, each alike.

    Args:
        model: The policy being trained.
        batch: Tokens, advantages and earlier log-probabilities; ``ref_logps`` are needed
            if ``kl_beta`` is not 0.
        config: Which ratio, clip and correction.
        kl_beta: Weight of the KL in the loss.
        kl_fn: How it is estimated.

    Raises:
        ValueError: If ``kl_beta`` is not 0 and there are no ``ref_logps``.
    """
    policy = common.policy_logps(model, batch, with_entropy=needs_entropy(config))
    return objective_of_logps(policy, batch, config=config, kl_beta=kl_beta, kl_fn=kl_fn)


def needs_entropy(config: algorithm_config.AlgorithmConfig) -> bool:
    """Return whether the objective reads the policy's entropy."""
    return config.log_entropy or config.entropy_coef is not None


def objective_of_logps(
    policy: common.PolicyLogps,
    batch: common.PolicyBatch,
    *,
    config: algorithm_config.AlgorithmConfig,
    kl_beta: float = 0.0,
    kl_fn: kl.KLEstimator = kl.k3,
    further_loss: Float[Array, " N"] | None = None,
    further_metrics: losses.Metrics | None = None,
) -> loss_output.LossOutput:
    """Return :func:`policy_objective` of what the policy said of the tokens.

    Args:
        policy: Log-probabilities, with entropy where the settings read it.
        batch: See :func:`policy_objective`, also for the next three.
        config: Which ratio, clip and correction.
        kl_beta: Weight of the KL in the loss.
        kl_fn: How it is estimated.
        further_loss: Loss of every token that is added before they are weighed.
        further_metrics: What is logged of it.

    Raises:
        ValueError: If ``kl_beta`` is not 0 and there are no ``ref_logps``.
    """
    mask, logps = batch.mask, policy.logps
    old_logps = jnp.where(batch.on_policy, jax.lax.stop_gradient(logps), batch.old_logps)

    log_ratio = config.importance_fn(logps, old_logps, mask, sequence=batch.sequence)
    per_token, metrics = config.policy_loss(
        log_ratio, batch.advantages, mask, **config.clip_options
    )
    if config.correction_fn is not None:
        per_token, correction = _corrected(per_token, old_logps, batch, config)
        metrics = metrics | correction
    if kl_beta != 0.0:
        if batch.ref_logps is None:
            raise ValueError(f"beta is {kl_beta}, but the batch has no ref_logps")
        # Mask the inputs, not only the result: 0 * NaN is NaN in the backward pass.
        divergence = kl_fn(jnp.where(mask, logps, 0.0), jnp.where(mask, batch.ref_logps, 0.0))
        per_token = per_token + kl_beta * divergence
        metrics = metrics | {"kl": losses.masked_sum(divergence, mask)}
    if policy.entropy is not None:
        metrics = metrics | {"entropy": losses.masked_sum(policy.entropy, mask)}
        if config.entropy_coef is not None:
            per_token = per_token - config.entropy_coef * policy.entropy
    if further_loss is not None:
        per_token = per_token + further_loss
    metrics = metrics | (further_metrics or {})
    mismatch, worst_mismatch = rollout_correction.mismatch_metrics(logps, batch.sampler_logps, mask)
    # 0 where there is no token, as of a step without a batch.
    largest_ratio = jnp.where(mask, jnp.exp(log_ratio), 0.0).max()
    return loss_output.LossOutput(
        loss_sum=(batch.weights * jnp.where(mask, per_token, 0.0)).sum(),
        weight_sum=batch.weight,
        metrics=jax.lax.stop_gradient(metrics | mismatch),
        maxima=jax.lax.stop_gradient({"ratio_max": largest_ratio} | worst_mismatch),
    )


def _corrected(
    per_token: Float[Array, " N"],
    old_logps: Float[Array, " N"],
    batch: common.PolicyBatch,
    config: algorithm_config.AlgorithmConfig,
) -> tuple[Float[Array, " N"], losses.Metrics]:
    """Return the losses, each weighed by what the trainer thinks of the sampler's draw."""
    assert config.correction_fn is not None
    weights = config.correction_fn(
        old_logps - batch.sampler_logps,
        batch.mask,
        sequence=batch.sequence,
        limit=config.rollout_correction_limit,
    )
    metrics = {"correction_weight": losses.masked_sum(weights, batch.mask)}
    return per_token * jax.lax.stop_gradient(weights), metrics
