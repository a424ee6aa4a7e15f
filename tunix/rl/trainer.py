"""The actor's trainer: a checkpoint also says how far the rollouts have come."""

from collections.abc import Callable, Mapping
from typing import Any

from tunix.sft import peft_trainer


class Trainer(peft_trainer.PeftTrainer):
    """Trains a policy one optimizer step at a time, under the direction of a learner."""

    _position: Mapping[str, Any] | None = None

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

    def compute(self, fn: Callable[..., Any], batch: Any) -> Any:
        """Dispatch ``fn(model, batch=batch)`` without gradient; compiled once for each ``fn``."""
        return self._stepper.compute(fn, {"batch": batch})

    def set_jit(self, jit: bool) -> None:
        """Compile the steps, or run every operation on its own."""
        self._stepper.set_jit(jit)
