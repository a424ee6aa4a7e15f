"""The actor's trainer: a checkpoint also says how far the rollouts have come."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from tunix.sft import peft_trainer
from tunix.sft.loop import train_state


class Trainer(peft_trainer.PeftTrainer):
    """Trains a policy one optimizer step at a time, under the direction of a learner."""

    _position: Mapping[str, Any] | None = None

    @property
    def accumulates(self) -> bool:
        """Steps have as many micro-batches as there is something to learn."""
        return True

    def save_at(self, position: Mapping[str, Any], *, force: bool = False) -> bool:
        """Start to save the run, and return whether this step is saved.

        Args:
            position: Where the learner stands; ``restored_metadata`` after a restart. JSON must
                be able to hold it.
            force: Save even where the options would not.
        """
        self._position = dict(position)
        return self.save_checkpoint(force=force)

    def custom_checkpoint_metadata(self) -> dict[str, Any]:
        """Return where the learner stands."""
        return dict(self._position or {})

    def copy_weights(self) -> nnx.State:
        """Return the model's arrays as they are now; later steps leave them alone.

        Arrays that are not trained are shared, not copied.
        """
        frozen = self._stepper.frozen
        flat = [
            (path, leaf if _name(path) in frozen else leaf.replace(jnp.copy(leaf.get_value())))
            for path, leaf in nnx.to_flat_state(nnx.state(self.model))
        ]
        return nnx.from_flat_state(flat)

    def frozen(self) -> train_state.Arrays:
        """Return the parameters that are not trained, by name."""
        return dict(self._stepper.frozen)

    def weights(self) -> list[train_state.Arrays]:
        """Return the model's arrays by name: trained, changed by forward passes, and frozen."""
        return [self.state.params, self.state.variables, self.frozen()]

    def replace_weights(self, weights: Sequence[train_state.Arrays]) -> None:
        """Keep what :meth:`weights` returned in other arrays with the same values."""
        params, variables, frozen = weights
        self._stepper.replace_frozen(frozen)
        self.replace_state(dataclasses.replace(self.state, params=params, variables=variables))

    def replace_frozen(self, arrays: train_state.Arrays) -> None:
        """Keep some of :meth:`frozen` in other arrays with the same values."""
        self._stepper.replace_frozen(arrays)

    def replace_opt_state(self, opt_state: Any) -> None:
        """Keep the optimizer's state in other arrays with the same values."""
        self.replace_state(dataclasses.replace(self.state, opt_state=opt_state))

    def compute(self, fn: Callable[..., Any], batch: Any) -> Any:
        """Dispatch ``fn(model, batch=batch)`` without gradient; compiled once for each ``fn``."""
        return self._stepper.compute(fn, {"batch": batch})

    def set_jit(self, jit: bool) -> None:
        """Compile the steps, or run every operation on its own."""
        self._stepper.set_jit(jit)


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
