"""An exponential moving average of the parameters, kept beside the optimizer's state.

It is updated with every optimizer step and saved in every checkpoint; a step that is skipped
leaves it as it is.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tunix.sft.loop import train_state

if TYPE_CHECKING:
    from tunix.sft import peft_trainer


class EmaState(NamedTuple):
    """State of an optimizer that keeps an average."""

    inner: Any
    """State of the optimizer itself."""
    average: train_state.Arrays
    """float32."""


def with_ema(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """Return ``optimizer``, which then also averages the parameters.

    After each step the average is ``decay * average + (1 - decay) * parameters``; it begins as
    the parameters before training.

    Raises:
        ValueError: If ``decay`` is not between 0 and 1.
    """
    if not 0.0 < decay < 1.0:
        raise ValueError(f"the decay of an average must lie between 0 and 1, got {decay}")

    def init(params: Any) -> EmaState:
        average = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)
        return EmaState(optimizer.init(params), average)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, EmaState]:
        updates, inner = optimizer.update(updates, state.inner, params)
        new = optax.apply_updates(params, updates)
        average = jax.tree.map(
            lambda a, p: decay * a + (1.0 - decay) * p.astype(jnp.float32), state.average, new
        )
        return updates, EmaState(inner, average)

    return optax.GradientTransformation(init, update)


@contextlib.contextmanager
def averaged(trainer: "peft_trainer.PeftTrainer") -> Iterator[None]:
    """Let ``trainer`` and its model hold the averaged parameters within a ``with`` statement.

    For evaluating, sampling or exporting them; training goes on with the parameters themselves.

    Raises:
        TypeError: If the trainer's optimizer keeps no average.
    """
    state = trainer.state
    if not isinstance(state.opt_state, EmaState):
        raise TypeError(
            "the trainer's optimizer keeps no average of the parameters; make the trainer with "
            "ema.with_ema(optimizer, decay)"
        )
    params = {
        name: jax.device_put(average.astype(state.params[name].dtype), state.params[name].sharding)
        for name, average in state.opt_state.average.items()
    }
    trainer.replace_state(dataclasses.replace(state, params=params))
    try:
        yield
    finally:
        trainer.replace_state(state)
