"""A training run in a process of its own, for tests that kill or interrupt it.

Run as ``python -m tests.sft.resumable_run DIRECTORY STEPS``. Prints ``step N`` after each step.
"""

import logging
import pathlib
import sys
import time

import optax
import orbax.checkpoint as ocp
from flax import nnx

from tests.sft import toys
from tunix.data import iterators
from tunix.sft import hooks, peft_trainer
from tunix.sft.loop import interrupt


class Announce(hooks.TrainingHooks):
    """Prints every step, and takes its time so that a signal arrives between two of them."""

    def on_train_start(self, train_ctx):
        print(f"start at {train_ctx.train_steps}", flush=True)

    def on_train_end(self, train_ctx):
        print("end", flush=True)

    def on_train_step_start(self, train_ctx): ...

    def on_train_step_end(self, train_ctx, train_step, train_loss, step_time):
        print(f"step {train_step}", flush=True)
        time.sleep(0.02)

    def on_eval_step_start(self, train_ctx): ...

    def on_eval_step_end(self, train_ctx, eval_loss): ...


def trainer_for(directory, max_steps, **settings):
    """A trainer with dropout, Adam, accumulation and a checkpoint every three steps."""
    directory = pathlib.Path(directory)
    config = peft_trainer.TrainingConfig(
        eval_every_n_steps=4,
        max_steps=max_steps,
        gradient_accumulation_steps=2,
        checkpoint_root_directory=str(directory / "checkpoints"),
        checkpointing_options=ocp.CheckpointManagerOptions(
            save_interval_steps=3, max_to_keep=2, cleanup_tmp_directories=True
        ),
        metrics_logging_options=peft_trainer.MetricsLoggerOptions(log_dir=str(directory)),
        pbar_description=None,
        **settings,
    )
    model = toys.Noisy(rngs=nnx.Rngs(0))
    trainer = peft_trainer.PeftTrainer(model, optax.adam(0.05), config)
    return trainer.with_loss_fn(toys.squared_error)


def train_data():
    """Shuffled epochs of unequal batches, with a position that can be saved."""
    rows = [toys.regression(1 + seed % 3, seed=seed) for seed in range(7)]
    return iterators.BatchIterator(
        rows, 1, shuffle_seed=3, num_epochs=None, collate=lambda r: r[0][0], last_batch="keep"
    )


def eval_data():
    return [toys.regression(4, seed=100), toys.regression(2, seed=101)]


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    run = trainer_for(sys.argv[1], int(sys.argv[2])).with_training_hooks(Announce())
    try:
        run.train(train_data(), eval_data())
    except interrupt.TrainingInterrupted as stopped:
        print(stopped, flush=True)
        raise SystemExit(130) from None
    run.close()
