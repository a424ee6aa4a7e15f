"""A model that says what a state is worth: a decoder with one output in place of its head."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from tunix.models import lora
from tunix.models.transformer import decoder
from tunix.ops import dot as dot_lib
from tunix.ops import visibility as visibility_lib
from tunix.rl import common
from tunix.rl.objectives import losses
from tunix.sft import loss_output


class Critic(nnx.Module):
    """A backbone and a linear value head that starts at zero.

    Args:
        backbone: A decoder; its own output head, if it has one, is not used.
        head_type: ``nnx.LoRAParam`` where only adapters are trained, and the head with them.
    """

    def __init__(self, backbone: decoder.Decoder, *, head_type: type[nnx.Param] = nnx.Param):
        self.backbone = backbone
        # Zero, so that the first advantages are those of the rewards alone.
        self.value_head = head_type(jnp.zeros((backbone.embed_dim, 1), jnp.float32))
        self.value_bias = head_type(jnp.zeros((1,), jnp.float32))

    def __call__(
        self,
        input_tokens: Int[Array, "B T"],
        visibility: visibility_lib.Visibility | None = None,
    ) -> Float[Array, "B T"]:
        """Return the value of the state behind each token, in float32."""
        hidden, _ = self.backbone.hidden(input_tokens, visibility)
        precision = dot_lib.resolve_precision(self.backbone.config.precision)
        values = dot_lib.dot(hidden, self.value_head[...], precision=precision)
        return (values.astype(jnp.float32) + self.value_bias[...])[..., 0]


def create_critic_model(actor_model: nnx.Module) -> Critic:
    """Return a critic that starts from the actor's weights.

    The critic of a fully trained actor is a copy. That of a LoRA actor has copies of the adapters
    only, and shares the arrays of the base model, which nobody trains.

    Args:
        actor_model: A decoder of this library.

    Raises:
        TypeError: If the actor is no decoder.
    """
    if not isinstance(actor_model, decoder.Decoder):
        raise TypeError(
            f"a critic is made from a tunix decoder, not {type(actor_model).__name__}; pass a "
            "module of your own as critic"
        )
    is_lora = lora.is_lora_enabled(actor_model)
    trained = nnx.LoRAParam if is_lora else nnx.Param
    graphdef, state, rest = nnx.split(actor_model, trained, ...)
    # The arrays are shared, not what holds them: each model may move to devices of its own.
    rest = jax.tree.map(lambda array: array, rest)
    backbone = nnx.merge(graphdef, jax.tree.map(jnp.copy, state), rest)
    if not backbone.config.weight_tying:
        del backbone.lm_head
    return Critic(backbone, head_type=nnx.LoRAParam if is_lora else nnx.Param)


def token_values(model: Any, batch: common.PolicyBatch) -> Float[Array, " N"]:
    """Return the value of the state before each predicted token; anything on padding.

    Args:
        model: A :class:`Critic`, or any module that is called like one.
        batch: Where the tokens lie.
    """
    values = model(batch.tokens, batch.visibility)
    return values.reshape(-1)[batch.source]


def value_objective(
    model: Any, batch: common.PolicyBatch, *, clip_range: float | None
) -> loss_output.LossOutput:
    """Return the value loss of one chunk; every token weighs alike.

    Raises:
        ValueError: If the batch has no values and returns.
    """
    if batch.values is None or batch.returns is None:
        raise ValueError("the critic learns from values and returns, but the batch has none")
    mask = batch.mask
    values = token_values(model, batch)
    per_token, metrics = losses.clipped_value(
        values, batch.values, batch.returns, mask, clip_range=clip_range
    )
    loss_sum, weight_sum = losses.masked_sum(per_token, mask)
    return loss_output.LossOutput(
        loss_sum=loss_sum, weight_sum=weight_sum, metrics=jax.lax.stop_gradient(metrics)
    )
