"""Policy and critic on one backbone: two heads, one forward pass, one loss."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tunix.models import lora
from tunix.models.transformer import decoder
from tunix.ops import dot as dot_lib
from tunix.rl import common
from tunix.rl.objectives import losses, policy_objective
from tunix.rl.ppo import ppo_config
from tunix.sft import loss_output


class ValueHead(nnx.Module):
    """A linear map from hidden states to values that starts at zero.

    Args:
        size: Channels of a hidden state.
        kind: ``nnx.LoRAParam`` where only adapters are trained, and the head with them.
    """

    def __init__(self, size: int, *, kind: type[nnx.Param] = nnx.Param):
        # Zero, so that the first advantages are those of the rewards alone.
        self.w = kind(jnp.zeros((size, 1), jnp.float32))
        self.bias = kind(jnp.zeros((1,), jnp.float32))

    def __call__(
        self, states: Float[Array, "N D"], *, precision: dot_lib.Precision
    ) -> Float[Array, " N"]:
        """Return the value of each state, in float32."""
        values = dot_lib.dot(states, self.w[...], precision=precision)
        return (values.astype(jnp.float32) + self.bias[...])[..., 0]


def add_value_head(actor: nnx.Module) -> None:
    """Give an actor a value head: it is its own critic then, trained and saved with it.

    Args:
        actor: A decoder of this library, before the cluster gets it. Its call, its output head
            and what is exported of it stay as they are.

    Raises:
        TypeError: If the actor is no decoder.
        ValueError: If it has a value head.
    """
    if not isinstance(actor, decoder.Decoder):
        raise TypeError(
            f"a value head goes on a tunix decoder, not on {type(actor).__name__}; give the "
            "cluster a critic of its own"
        )
    if has_value_head(actor):
        raise ValueError("the actor has a value head already")
    kind = nnx.LoRAParam if lora.is_lora_enabled(actor) else nnx.Param
    actor.value_head = ValueHead(  # pyright: ignore[reportAttributeAccessIssue]
        actor.embed_dim, kind=kind
    )


def remove_value_head(actor: decoder.Decoder) -> None:
    """Take the head off again, for those who want the policy alone."""
    del actor.value_head  # pyright: ignore[reportAttributeAccessIssue]


def has_value_head(model: nnx.Module) -> bool:
    """Return whether :func:`add_value_head` was here."""
    return isinstance(vars(model).get("value_head"), ValueHead)


def token_values(model: decoder.Decoder, batch: common.PolicyBatch) -> Float[Array, " N"]:
    """Return the value of the state before each predicted token; anything on padding."""
    return _values_of(model, common.predicting_states(model, batch))


def joint_objective(
    model: decoder.Decoder, batch: common.PolicyBatch, *, config: ppo_config.PPOConfig
) -> loss_output.LossOutput:
    """Return the policy loss plus ``value_coef`` times the value loss, from one forward pass.

    The losses of a token are added (Schulman et al., 2017, arXiv:1707.06347, eq. 9), then tokens
    are weighed: value losses weigh what the losses of their tokens weigh.

    Args:
        model: A decoder with a value head.
        batch: Tokens, advantages, values at the rollout and returns.
        config: See :mod:`tunix.rl.objectives.policy_objective`, and how values are clipped.

    Raises:
        ValueError: If the batch has no values and returns.
    """
    if batch.values is None or batch.returns is None:
        raise ValueError("the critic learns from values and returns, but the batch has none")
    states = common.predicting_states(model, batch)
    policy = common.logps_of_states(
        model, states, batch, with_entropy=policy_objective.needs_entropy(config)
    )
    value_loss, metrics = losses.clipped_value(
        _values_of(model, states),
        batch.values,
        batch.returns,
        batch.mask,
        clip_range=config.clip_range_value,
    )
    metrics = metrics | {"loss": losses.masked_sum(value_loss, batch.mask)}
    return policy_objective.objective_of_logps(
        policy,
        batch,
        config=config,
        further_loss=config.value_coef * value_loss,
        further_metrics={f"critic/{name}": pair for name, pair in metrics.items()},
    )


def _values_of(model: decoder.Decoder, states: Float[Array, "N D"]) -> Float[Array, " N"]:
    head: ValueHead = vars(model)["value_head"]
    precision = dot_lib.resolve_precision(model.config.precision)
    return head(states, precision=precision)
