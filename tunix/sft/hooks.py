"""Points of the training loop where user code runs.

The trainer that is passed to a hook, a :class:`~tunix.sft.peft_trainer.PeftTrainer`, has an
up-to-date ``model`` and counters. Whatever a hook raises ends the training; nothing is swallowed.
In reinforcement learning a step is a rollout with all optimizer steps on it, and hooks are those of
the actor's trainer; evaluations there have no batches to be called for.
"""

import abc
from typing import Any

from tunix.sft.loop import train_context


class TrainingHooks(abc.ABC):
    """Called around training, every optimizer step and every evaluation batch.

    Losses are passed as scalars on the device: reading one (``float(train_loss)``) waits for the
    step to finish, ignoring it costs nothing.
    """

    @abc.abstractmethod
    def on_train_start(self, train_ctx: train_context.TrainContext) -> None:
        """Called once per ``train()``, after a checkpoint was restored."""

    @abc.abstractmethod
    def on_train_end(self, train_ctx: train_context.TrainContext) -> None:
        """Called once per ``train()``, after the last checkpoint was written."""

    @abc.abstractmethod
    def on_train_step_start(self, train_ctx: train_context.TrainContext) -> None:
        """Called when the batches of a step are there and before it runs."""

    @abc.abstractmethod
    def on_train_step_end(
        self,
        train_ctx: train_context.TrainContext,
        train_step: int,
        train_loss: float,
        step_time: float,
    ) -> None:
        """Called when step ``train_step`` (from 1) was dispatched, ``step_time`` seconds long."""

    @abc.abstractmethod
    def on_eval_step_start(self, train_ctx: train_context.TrainContext) -> None:
        """Called before each batch of an evaluation."""

    @abc.abstractmethod
    def on_eval_step_end(self, train_ctx: train_context.TrainContext, eval_loss: float) -> None:
        """Called after each batch of an evaluation, with the mean loss of that batch."""


class DataHooks(abc.ABC):
    """Supplies the batches in place of the data sets' own iteration.

    The position in the data then belongs to the hook: ``train_ctx.iter_steps`` says how many
    training batches have been consumed, also after a resume.
    """

    @abc.abstractmethod
    def load_next_train_batch(self, train_ctx: train_context.TrainContext) -> Any:
        """Return the next training batch, or ``None`` at the end of the data."""

    @abc.abstractmethod
    def load_next_eval_batch(self, train_ctx: train_context.TrainContext) -> Any:
        """Return the next evaluation batch, or ``None`` at the end of this evaluation."""
