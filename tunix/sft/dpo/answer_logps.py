"""What a model says of whole answers: sums of token log-probabilities.

Axes: ``R`` rows of ``T`` tokens, ``M`` predicted tokens of a row, ``A`` answers of a row, see
:mod:`tunix.data.preference.preference_batching`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from tunix.data.preference import preference_batching
from tunix.models import lora
from tunix.models.transformer import decoder as decoder_lib
from tunix.ops import dot as dot_lib
from tunix.ops import linear_logprob


def answer_logps(
    model: Any,
    rows: preference_batching.AnswerRows,
    *,
    adapters: bool = True,
    dropout_key: PRNGKeyArray | None = None,
) -> Float[Array, "R A"]:
    """Return the log-probability of every answer, 0 where there is none.

    A decoder's head is applied to the hidden states that predict a token that counts and to no
    others, never as ``[R, T, V]`` logits. Any other module is called as ``model(tokens, positions,
    None, attention_mask) -> (logits, cache)``.

    Args:
        model: The language model.
        rows: Where prompts and answers lie.
        adapters: False computes the base model, without LoRA.
        dropout_key: Drops inputs of adapters, as their dropout says; a prompt that answers share
            is computed once, so it drops the same for all of them. ``None`` drops nothing.

    Raises:
        ValueError: If a foreign module is asked to leave its adapters out.
    """
    rows = jax.tree.map(jnp.asarray, rows)
    if decoder_lib.has_hidden(model):
        logps = _decoder_logps(model, rows, adapters, dropout_key)
    elif adapters:
        logps = _foreign_logps(model, rows)
    else:
        raise ValueError(
            f"{type(model).__name__} is not a tunix decoder, so its adapters cannot be switched "
            "off; give the trainer a ref_model"
        )
    members = rows.answer[:, :, None] == jnp.arange(rows.lengths.shape[1])
    return jnp.where(members, logps[:, :, None], 0.0).sum(axis=1)


def training_key(model: Any) -> PRNGKeyArray | None:
    """Return the key of one training pass; ``None`` if nothing drops, or in evaluation."""
    return model.dropout_key() if decoder_lib.has_hidden(model) else None


def _decoder_logps(
    model: decoder_lib.Decoder,
    rows: preference_batching.AnswerRows,
    adapters: bool,
    dropout_key: PRNGKeyArray | None,
) -> Float[Array, "R M"]:
    hidden, _ = model.hidden(
        rows.tokens, rows.visibility, adapters=adapters, dropout_key=dropout_key
    )
    num_rows, length, width = hidden.shape
    targets, order = rows.targets.reshape(-1), None
    if rows.num_targets is None:
        states = jnp.take_along_axis(hidden, rows.source[:, :, None], axis=1).reshape(-1, width)
    else:
        order = jnp.argsort(rows.answer.reshape(-1) == rows.lengths.shape[1], stable=True)
        source = (rows.source + length * jnp.arange(num_rows)[:, None]).reshape(-1)
        states, targets = hidden.reshape(-1, width)[source[order]], targets[order]
    head = model.output_head()
    logps = linear_logprob.linear_logprob(
        states,
        head.weight,
        targets,
        num_valid=rows.num_targets,
        softcap=head.softcap,
        head_needs_grad=not lora.is_lora_enabled(model),
        precision=dot_lib.resolve_precision(model.config.precision),
    ).logps
    if order is not None:
        logps = jnp.zeros_like(logps).at[order].set(logps, unique_indices=True)
    return logps.reshape(rows.targets.shape)


def on_one_device(batch: Any) -> Any:
    """Return a batch of rows that says how many targets these have, see ``AnswerRows``."""

    def counted(part: Any) -> Any:
        if not isinstance(part, preference_batching.AnswerRows) or part.num_targets is not None:
            return part
        count = (np.asarray(part.answer) < part.lengths.shape[1]).sum()
        return dataclasses.replace(part, num_targets=np.asarray(count, np.int32))

    is_rows = lambda x: isinstance(x, preference_batching.AnswerRows)  # noqa: E731
    return jax.tree.map(counted, batch, is_leaf=is_rows)


def _foreign_logps(model: Any, rows: preference_batching.AnswerRows) -> Float[Array, "R M"]:
    logits, _ = model(
        rows.tokens, rows.positions, None, rows.visibility.dense_mask(rows.tokens.shape)
    )
    logits = jnp.take_along_axis(logits, rows.source[:, :, None], axis=1)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return jnp.take_along_axis(log_probs, rows.targets[:, :, None], axis=-1)[..., 0]
