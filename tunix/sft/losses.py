"""The supervised loss: next-token cross-entropy, weighted token by token.

Masks and weights come with the batch; nothing here compares token ids. Axes: ``B`` rows, ``T``
tokens of a row, ``N`` predicted tokens, ``D`` channels, ``V`` vocabulary.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tunix.models.transformer import decoder as decoder_lib
from tunix.ops import dot as dot_lib
from tunix.ops import linear_logprob
from tunix.ops import visibility as visibility_lib
from tunix.sft import loss_output
from tunix.sft import utils as sft_utils
from tunix.utils import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextTokenLoss(config_lib.Config):
    """The loss of supervised training, a function ``loss(model, input_tokens, ...)``.

    The loss of a token is ``(1 - s) * nll + s * mean over the vocabulary of -log p + z_loss *
    logsumexp(logits) ** 2`` with ``s`` the label smoothing; the metric ``nll`` is the negative
    log-likelihood whatever these are.
    """

    label_smoothing: float = 0.0
    """Share of each target's probability that is given to the whole vocabulary."""

    z_loss: float = 0.0
    """Weight of the squared normaliser (PaLM, arXiv:2204.02311, section 5)."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        if not 0.0 <= self.label_smoothing < 1.0:
            yield f"label_smoothing must lie in [0, 1), got {self.label_smoothing}"
        if not 0.0 <= self.z_loss < float("inf"):
            yield f"z_loss must not be negative, got {self.z_loss}"

    def __call__(
        self,
        model: Any,
        input_tokens: Int[Array, "B T"],
        input_mask: Array,
        positions: Int[Array, "B T"] | None = None,
        attention_mask: Bool[Array, "B T T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        loss_positions: Int[Array, " N"] | None = None,
        num_loss_positions: Int[Array, ""] | None = None,
    ) -> loss_output.LossOutput:
        """Return the summed loss of the weighted tokens, and their weight.

        A :class:`~tunix.models.transformer.decoder.Decoder` goes the fused way, which never holds
        ``[B, T, V]`` logits; any other module is called as ``model(tokens, positions, None,
        attention_mask) -> (logits, cache)``.

        Args:
            model: The language model.
            input_tokens: Token ids.
            input_mask: ``[B, T]`` weight of predicting each token from the ones before it: a
                bool, integer or float. A token without a predecessor (the first of a row or of a
                packed segment) cannot be predicted, and its weight does not count.
            positions: Rotary positions; by default the index in the row.
            attention_mask: True where query ``t`` may see key ``s``; causal by default.
            segment_ids: Packing: a token sees earlier tokens of its own segment. 0 is padding.
            loss_positions: Flat indices into ``[B * T]`` of the tokens to predict, so that the
                head is not computed elsewhere. They must cover every token of non-zero weight,
                each once.
            num_loss_positions: How many of them count, by default all; the others fill the shape.

        Returns:
            The loss, with the metric ``nll``: the negative log-likelihood, whose exponential is
            the perplexity.
        """
        weights = predictable_weights(input_mask, segment_ids)
        visibility = visibility_lib.Visibility(positions, segment_ids, mask=attention_mask)
        if decoder_lib.has_hidden(model):
            hidden, _ = model.hidden(
                input_tokens,
                visibility,
                input_embeddings=model.noisy_embeddings(input_tokens, segment_ids),
                dropout_key=model.dropout_key(),
            )
            positions_of_loss = (loss_positions, num_loss_positions)
            sums = _fused_loss(self, model, hidden, input_tokens, weights, *positions_of_loss)
        else:
            logits = _foreign_logits(model, input_tokens, visibility)
            sums = _loss_of_logits(self, logits, input_tokens, weights)
        loss_sum, nll_sum = sums
        weight_sum = weights.sum()
        return loss_output.LossOutput(
            loss_sum=loss_sum,
            weight_sum=weight_sum,
            metrics={"nll": (jax.lax.stop_gradient(nll_sum), weight_sum)},
        )


next_token_loss = NextTokenLoss()
"""Plain cross-entropy."""


def predictable_weights(
    input_mask: Array, segment_ids: Int[Array, "B T"] | None
) -> Float[Array, "B T"]:
    """Return the weights in float32, 0 for tokens that nothing of their segment precedes."""
    weights = jnp.asarray(input_mask, jnp.float32).at[:, 0].set(0.0)
    if segment_ids is None:
        return weights
    starts = segment_ids[:, 1:] != segment_ids[:, :-1]
    return weights.at[:, 1:].set(jnp.where(starts, 0.0, weights[:, 1:]))


def _fused_loss(
    settings: NextTokenLoss,
    model: decoder_lib.Decoder,
    hidden: Float[Array, "B T D"],
    tokens: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    loss_positions: Int[Array, " N"] | None,
    num_valid: Int[Array, ""] | None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    if loss_positions is None:
        states = hidden[:, :-1].reshape(-1, hidden.shape[-1])
        targets, target_weights = tokens[:, 1:].reshape(-1), weights[:, 1:].reshape(-1)
    else:
        # The state before a token predicts it; the first one of all has none, and no weight.
        states = hidden.reshape(-1, hidden.shape[-1])[jnp.maximum(loss_positions - 1, 0)]
        targets = tokens.reshape(-1)[loss_positions]
        target_weights = weights.reshape(-1)[loss_positions]
    head = model.output_head()
    loss_sum, logps = linear_logprob.linear_cross_entropy(
        states,
        head.weight,
        targets,
        target_weights,
        num_valid=num_valid,
        softcap=head.softcap,
        label_smoothing=settings.label_smoothing,
        z_loss=settings.z_loss,
        head_needs_grad=not sft_utils.is_lora_enabled(model),
        precision=dot_lib.resolve_precision(model.config.precision),
    )
    return loss_sum, -(target_weights * logps).sum()


def _foreign_logits(
    model: Any,
    tokens: Int[Array, "B T"],
    visibility: visibility_lib.Visibility,
) -> Float[Array, "B T V"]:
    mask, segments = visibility.mask, visibility.segment_ids
    if mask is None:
        mask = visibility.dense_mask(tokens.shape)
    elif segments is not None:  # a given mask says all of the rest, also what is not causal
        mask = mask & (segments[:, :, None] == segments[:, None, :])
    logits, _ = model(tokens, visibility.positions_in(tokens.shape), None, mask)
    return logits


def _loss_of_logits(
    settings: NextTokenLoss,
    logits: Float[Array, "B T V"],
    tokens: Int[Array, "B T"],
    weights: Float[Array, "B T"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    logits = logits[:, :-1].astype(jnp.float32)
    picked = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    nll = normalizer - picked
    loss = nll
    if settings.label_smoothing:
        everyone = normalizer - logits.mean(axis=-1)
        loss = loss + settings.label_smoothing * (everyone - nll)
    if settings.z_loss:
        loss = loss + settings.z_loss * normalizer**2
    weights = weights[:, 1:]
    # Where a weight is 0 the token does not count, not even as 0 * inf.
    loss_sum, nll_sum = (jnp.where(weights == 0, 0.0, x * weights).sum() for x in (loss, nll))
    return loss_sum, nll_sum
