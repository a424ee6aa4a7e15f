"""What a training batch may be, and the loss arguments made of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import numpy as np
from jaxtyping import Int

ArrayOrNone = jax.Array | np.ndarray | None


@flax.struct.dataclass
class TrainingInput:
    """A batch of token rows and the weight with which each token is learned."""

    input_tokens: jax.Array | np.ndarray
    """``[B, T]`` token ids."""
    input_mask: jax.Array | np.ndarray
    """``[B, T]`` weight of predicting each token from those before it; 0 (False) for none."""
    positions: ArrayOrNone = None
    """``[B, T]`` rotary positions; by default the index in the row."""
    segment_ids: ArrayOrNone = None
    """``[B, T]`` which example of a packed row a token belongs to; 0 is padding."""


def default_model_input(batch: Any) -> dict[str, Any]:
    """Return the loss function's keyword arguments for a ``TrainingInput`` or a mapping.

    Raises:
        TypeError: If the batch is anything else.
    """
    if isinstance(batch, TrainingInput):
        fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
        return {name: value for name, value in fields.items() if value is not None}
    if isinstance(batch, Mapping):
        return dict(batch)
    raise TypeError(
        f"a training batch is a {type(batch).__name__}; expected a TrainingInput or a dict of the "
        "loss function's arguments. Convert it with trainer.with_gen_model_input_fn(fn)"
    )


def named_inputs(given: Any) -> dict[str, Any]:
    """Return what a user's ``gen_model_input_fn`` made of a batch as the loss's arguments.

    Raises:
        TypeError: If it is no mapping of names.
    """
    if isinstance(given, Mapping) and all(isinstance(name, str) for name in given):
        return dict(given)
    found = f"a value of type {type(given).__name__}"
    if isinstance(given, Mapping):
        found = f"a mapping with keys {list(given)[:4]}"
    raise TypeError(
        f"gen_model_input_fn returned {found}; it must return the loss "
        "function's arguments by name, such as {'input_tokens': ..., 'input_mask': ...}"
    )


def loss_positions(input_mask: np.ndarray) -> dict[str, Int[np.ndarray, "..."]]:
    """Return where a batch has loss, so that the head is computed only there.

    The shapes are those of the batch, whatever share of it has loss: every shape is a program.

    Args:
        input_mask: ``[B, T]`` weights on the host.

    Returns:
        ``loss_positions``, the flat indices of all tokens, those of non-zero weight first, and
        ``num_loss_positions``, how many these are.
    """
    weights = np.array(input_mask != 0)
    weights[:, 0] = False  # nothing precedes the first token of a row
    order = np.argsort(~weights.ravel(), kind="stable").astype(np.int32)
    return {"loss_positions": order, "num_loss_positions": np.asarray(weights.sum(), np.int32)}
