"""A DPO run in a process of its own, for tests that kill it: packed, shuffled, accumulating.

Run as ``python -m tests.sft.dpo.resumable_run DIRECTORY STEPS``. Prints ``step N`` after each step.
"""

import pathlib
import sys

import optax
import orbax.checkpoint as ocp

from tests.sft import resumable_run
from tests.sft.dpo import arrangements, helpers
from tunix.data.preference import preference_batches, preference_config
from tunix.sft import peft_trainer
from tunix.sft.dpo import dpo_trainer


def trainer_for(directory, max_steps):
    """A trainer of a loss that couples the pairs of a step, with a live reference."""
    directory = pathlib.Path(directory)
    config = dpo_trainer.DPOTrainingConfig(
        eval_every_n_steps=4,
        max_steps=max_steps,
        gradient_accumulation_steps=2,
        checkpoint_root_directory=str(directory / "checkpoints"),
        checkpointing_options=ocp.CheckpointManagerOptions(
            save_interval_steps=3, max_to_keep=2, cleanup_tmp_directories=True
        ),
        metrics_logging_options=peft_trainer.MetricsLoggerOptions(log_dir=str(directory)),
        pbar_description=None,
        loss_type=("sigmoid", "aot_unpaired"),
    )
    models = (arrangements.OneLayer(seed=seed) for seed in (0, 1))
    return dpo_trainer.DPOTrainer(*models, optax.adam(0.01), config)


def data(count, **settings):
    """Batches of two packed rows."""
    settings = preference_config.PreferenceDataConfig(
        batch_size=2, packing=True, row_length=24, last_batch="keep", **settings
    )
    return preference_batches.pair_batches(helpers.pairs(count), settings)


def train(directory, max_steps, hooks=None):
    """Train to the end and return the step it started from, and the trainer."""
    trainer = trainer_for(directory, max_steps)
    if hooks is not None:
        trainer.with_training_hooks(hooks)
    start = trainer.train_steps
    trainer.train(data(13, shuffle_seed=3, num_epochs=None), data(5, shuffle_seed=None))
    trainer.close()
    return start, trainer


if __name__ == "__main__":
    train(sys.argv[1], int(sys.argv[2]), resumable_run.Announce())
