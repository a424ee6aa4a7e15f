"""The batch a policy is trained on, and the log-probabilities of its tokens.

Axes: ``R`` rows of ``T`` tokens as the model reads them, ``N`` predicted tokens,
``S`` completions of up to ``C`` tokens as the losses see them.
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
    """One micro-batch: where its tokens lie (see :mod:`tunix.rl.packing`) and what they earned."""

    tokens: Int[Array, "R T"]
    positions: Int[Array, "R T"]
    segment_ids: Int[Array, "R T"]
    prefix_ids: Int[Array, "R T"]
    source: Int[Array, " N"]
    targets: Int[Array, " N"]
    slot: Int[Array, "S C"]

    lengths: Int[Array, " S"]
    """How many tokens of each completion the loss counts; 0 for one that is not in this batch."""
    live: Bool[Array, " S"]
    """False where the log-probabilities are not computed: the loss is known to be zero there,
    and only its weight counts."""
    advantages: Float[Array, "S C"]
    """Advantage of each token; 0 on padding."""
    sampler_logps: Float[Array, "S C"]
    """Log-probabilities as the sampler saw them; 0 on padding."""
    temperature: Float[Array, ""]
    """The temperature the tokens were sampled at, which is part of the policy."""
    old_logps: Float[Array, "S C"] | None = None
    """Log-probabilities the ratio starts from; ``None`` means those of the current policy."""
    ref_logps: Float[Array, "S C"] | None = None
    """Log-probabilities under the reference policy, where the loss needs them."""
    values: Float[Array, "S C"] | None = None
    """What the critic thought of the state before each token at the rollout, if there is one."""
    returns: Float[Array, "S C"] | None = None
    """What the critic should have thought."""

    @property
    def visibility(self) -> visibility_lib.Visibility:
        """Where the tokens stand and whom they see."""
        return visibility_lib.Visibility(self.positions, self.segment_ids, self.prefix_ids)

    @property
    def mask(self) -> Bool[Array, "S C"]:
        """Where the loss counts a token."""
        return jnp.arange(self.sampler_logps.shape[1]) < self.lengths[:, None]

    @property
    def computed(self) -> Bool[Array, "S C"]:
        """Where the loss counts a token and its log-probability is computed."""
        return self.mask & self.live[:, None]


class PolicyLogps(NamedTuple):
    """What a model says of every completion token; 0 where nothing is computed."""

    logps: Float[Array, "S C"]
    entropy: Float[Array, "S C"] | None


def policy_logps(
    model: nnx.Module,
    batch: PolicyBatch,
    *,
    adapters: bool = True,
    with_entropy: bool = False,
) -> PolicyLogps:
    """Return the log-probabilities of all completion tokens, at the sampling temperature.

    The output head is applied to the hidden states that predict a completion token and
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
    return _by_sequence(*_foreign_logps(model, batch, with_entropy), batch)


def token_logps(model: nnx.Module, batch: PolicyBatch) -> Float[Array, "S C"]:
    """Return :func:`policy_logps` without entropy."""
    return policy_logps(model, batch).logps


def predicting_states(
    model: decoder.Decoder, batch: PolicyBatch, *, adapters: bool = True
) -> Float[Array, "N D"]:
    """Return the hidden states that predict completion tokens, one for every target."""
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
        softcap=head.softcap,
        temperature=batch.temperature,
        with_entropy=with_entropy,
        head_needs_grad=not lora.is_lora_enabled(model),
        precision=dot_lib.resolve_precision(model.config.precision),
    )
    return _by_sequence(logps, entropy, batch)


def _by_sequence(
    logps: Float[Array, " N"], entropy: Float[Array, " N"] | None, batch: PolicyBatch
) -> PolicyLogps:
    return PolicyLogps(
        logps=by_sequence(logps, batch.slot),
        entropy=None if entropy is None else by_sequence(entropy, batch.slot),
    )


def _foreign_logps(
    model: nnx.Module, batch: PolicyBatch, with_entropy: bool
) -> tuple[Float[Array, " N"], Float[Array, " N"] | None]:
    logits, _ = model(  # pyright: ignore[reportCallIssue]
        batch.tokens, batch.positions, None, batch.visibility.dense_mask(batch.tokens.shape)
    )
    logits = logits.reshape(-1, logits.shape[-1])[batch.source].astype(jnp.float32)
    log_probs = jax.nn.log_softmax(logits / batch.temperature, axis=-1)
    logps = jnp.take_along_axis(log_probs, batch.targets[:, None], axis=-1)[:, 0]
    entropy = -(jnp.exp(log_probs) * log_probs).sum(axis=-1) if with_entropy else None
    return logps, entropy


def by_sequence(values: Float[Array, " N"], slot: Int[Array, "S C"]) -> Float[Array, "S C"]:
    """Return one row per completion; slots that point past ``N`` are 0 and have no gradient."""
    return values.at[slot].get(mode="fill", fill_value=0.0)


__getattr__ = reference_names.hints(__name__)
