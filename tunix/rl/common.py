"""The batch a policy is trained on, and the log-probabilities of its tokens.

Axes: ``R`` rows of ``T`` tokens as the model reads them, ``N`` predicted tokens as the losses see
them. Targets come first, padding behind them.
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from tunix.models import lora
from tunix.models.transformer import decoder
from tunix.ops import dot as dot_lib
from tunix.ops import linear_logprob
from tunix.ops import visibility as visibility_lib
from tunix.utils import reference_names


@flax.struct.dataclass
class PolicyBatch:
    """A chunk: where its tokens lie (see :mod:`tunix.rl.batches.packing`) and what they earned."""

    tokens: Int[Array, "R T"]
    positions: Int[Array, "R T"]
    segment_ids: Int[Array, "R T"]
    prefix_ids: Int[Array, "R T"]

    source: Int[Array, " N"]
    """Index into the flattened rows of the hidden state that predicts each target."""
    targets: Int[Array, " N"]
    sequence: Int[Array, " N"]
    """Which sequence of the chunk each target belongs to: ids below ``N``, in rising order."""
    mask: Bool[Array, " N"]
    """Where there is a target; elsewhere all other arrays are padding."""
    num_targets: Int[Array, ""] | None
    """How many targets there are, where padding shall cost nothing: on one device."""

    weights: Float[Array, " N"]
    """What each token weighs in the sum of losses (see :mod:`tunix.rl.objectives.aggregation`)."""
    weight: Float[Array, ""]
    """What the chunk adds to the weight that divides the sum."""
    advantages: Float[Array, " N"]
    sampler_logps: Float[Array, " N"]
    """Log-probabilities as the sampler saw them."""
    old_logps: Float[Array, " N"]
    """Log-probabilities the ratio starts from."""
    on_policy: Bool[Array, ""]
    """Whether it starts from those of the policy that is being trained instead."""
    temperature: Float[Array, ""]
    """The temperature the tokens were sampled at, which is part of the policy."""
    ref_logps: Float[Array, " N"] | None = None
    """Log-probabilities under the reference policy, where the loss needs them."""
    values: Float[Array, " N"] | None = None
    """What the critic thought of the state before each token at the rollout, if there is one."""
    returns: Float[Array, " N"] | None = None
    """What the critic should have thought."""

    @property
    def visibility(self) -> visibility_lib.Visibility:
        """Where the tokens stand and whom they see."""
        return visibility_lib.Visibility(self.positions, self.segment_ids, self.prefix_ids)


class PolicyLogps(NamedTuple):
    """What a model says of every predicted token; anything on padding."""

    logps: Float[Array, " N"]
    entropy: Float[Array, " N"] | None


def policy_logps(
    model: nnx.Module,
    batch: PolicyBatch,
    *,
    adapters: bool = True,
    with_entropy: bool = False,
) -> PolicyLogps:
    """Return the log-probabilities of all predicted tokens, at the sampling temperature.

    The output head is applied to the hidden states that predict a token and
    to no others, and never as an array of ``T x V`` logits. A foreign module, which shows
    only its logits, works too, at their price.

    Args:
        model: A decoder, or any module called as ``(tokens, positions, cache, attention_mask)``.
        batch: Where the tokens lie.
        adapters: False computes the base model, without LoRA.
        with_entropy: Whether to compute the entropy of every predicted distribution too.

    Raises:
        ValueError: If a foreign module is asked to leave its adapters out.
    """
    if decoder.has_hidden(model):
        states = predicting_states(model, batch, adapters=adapters)
        return logps_of_states(model, states, batch, with_entropy=with_entropy)
    if not adapters:
        raise ValueError(
            f"{type(model).__name__} is not a tunix decoder, so its adapters cannot be switched "
            "off; give the cluster a reference model"
        )
    return _foreign_logps(model, batch, with_entropy)


def token_logps(model: nnx.Module, batch: PolicyBatch) -> Float[Array, " N"]:
    """Return :func:`policy_logps` without entropy."""
    return policy_logps(model, batch).logps


def predicting_states(
    model: decoder.Decoder, batch: PolicyBatch, *, adapters: bool = True
) -> Float[Array, "N D"]:
    """Return the hidden states that predict tokens, one for every target."""
    hidden, _ = model.hidden(batch.tokens, batch.visibility, adapters=adapters)
    return hidden.reshape(-1, hidden.shape[-1])[batch.source]


def logps_of_states(
    model: decoder.Decoder,
    states: Float[Array, "N D"],
    batch: PolicyBatch,
    *,
    with_entropy: bool = False,
) -> PolicyLogps:
    """Return what the model's output head makes of :func:`predicting_states`."""
    head = model.output_head()
    logps, entropy = linear_logprob.linear_logprob(
        states,
        head.weight,
        batch.targets,
        num_valid=batch.num_targets,
        softcap=head.softcap,
        temperature=batch.temperature,
        with_entropy=with_entropy,
        head_needs_grad=not lora.is_lora_enabled(model),
        precision=dot_lib.resolve_precision(model.config.precision),
    )
    return PolicyLogps(logps, entropy)


def _foreign_logps(model: nnx.Module, batch: PolicyBatch, with_entropy: bool) -> PolicyLogps:
    logits, _ = model(  # pyright: ignore[reportCallIssue]
        batch.tokens, batch.positions, None, batch.visibility.dense_mask(batch.tokens.shape)
    )
    logits = logits.reshape(-1, logits.shape[-1])[batch.source].astype(jnp.float32)
    log_probs = jax.nn.log_softmax(logits / batch.temperature, axis=-1)
    logps = jnp.take_along_axis(log_probs, batch.targets[:, None], axis=-1)[:, 0]
    entropy = -(jnp.exp(log_probs) * log_probs).sum(axis=-1) if with_entropy else None
    return PolicyLogps(logps, entropy)


__getattr__ = reference_names.hints(__name__)
