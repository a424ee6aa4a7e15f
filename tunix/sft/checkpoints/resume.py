"""What a checkpoint of a training run consists of, and how a run continues from one."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from tunix.sft import checkpoint_manager, training_config
from tunix.sft.checkpoints import checkpoint_recovery, checkpoint_storage
from tunix.sft.loop import train_state

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands besides its arrays; stored as JSON."""

    iter_steps: int
    """Batches consumed."""
    data_state: Mapping[str, Any]
    """Position in the data, see :meth:`tunix.sft.loop.train_data.TrainData.state`."""
    custom: Mapping[str, Any]
    """What the user of the trainer wants back."""
    stopping: Mapping[str, Any] | None = None
    """State of early stopping."""
    skipped_last: int = 0
    """Steps in a row, up to this one, whose loss or gradient was not finite."""


def open_checkpoints(
    config: training_config.TrainingConfig,
) -> checkpoint_manager.CheckpointManager:
    """Return the manager of a run's checkpoints; its latest is the one to continue from.

    Raises:
        CheckpointDamagedError: If they cannot be listed, or none is sound.
        CheckpointWriteError: If the directory cannot be written.
    """
    root, options = config.checkpoint_root_directory, config.checkpointing_options
    if root is not None and config.resume == "newest-sound":
        options = options or checkpoint_manager.default_options()
        checkpoint_recovery.set_aside_damaged([checkpoint_storage.absolute(root)], options)
    try:
        return checkpoint_manager.CheckpointManager(root, options)
    except checkpoint_storage.CheckpointDamagedError as error:
        raise with_remedy(error) from error


def save(
    manager: checkpoint_manager.CheckpointManager,
    state: train_state.TrainState,
    step: int,
    position: Position,
    *,
    metrics: Mapping[str, float] | None,
    force: bool,
) -> bool:
    """Start to save a run and return whether this step is saved."""
    return manager.save_state(
        step, _parts(state), dataclasses.asdict(position), metrics=metrics, force=force
    )


def restore_latest(
    manager: checkpoint_manager.CheckpointManager, state: train_state.TrainState
) -> tuple[train_state.TrainState, int, Position] | None:
    """Return the state, step and position of the last complete checkpoint, or ``None``.

    Args:
        manager: Where the checkpoints are.
        state: A fresh state: what a checkpoint must look like, and where its arrays go.

    Raises:
        CheckpointDamagedError: If that checkpoint is no longer what was written.
        CheckpointMismatchError: Listing every array that does not fit.
        CheckpointWriteError: If there is nothing to restore and no room for a first checkpoint.
    """
    step = manager.latest_step()
    if step is None:
        manager.require_space_for(state)
        return None
    try:
        parts, metadata = manager.restore_state(step, _parts(state))
    except checkpoint_storage.CheckpointDamagedError as error:
        raise with_remedy(error) from error
    counters = parts.pop("counters")
    restored = dataclasses.replace(
        state,
        params=parts["params"],
        variables=parts["variables"],
        opt_state=parts["optimizer"],
        **counters,
    )
    _LOG.info("resumed from the checkpoint of step %d", step)
    return restored, step, Position(**metadata)


def with_remedy(
    error: checkpoint_storage.CheckpointDamagedError,
) -> checkpoint_storage.CheckpointDamagedError:
    """Return the error with what continues the run all the same."""
    remedy = "; restore the directory from a copy, or start anew in another one"
    if error.sound:
        remedy = (
            f"; resume=newest-sound continues from step {max(error.sound)} and moves later ones "
            "to a directory beside it"
        )
    return checkpoint_storage.CheckpointDamagedError(
        error.subject, error.problems, error.sound, remedy
    )


def _parts(state: train_state.TrainState) -> dict[str, Any]:
    return {
        "params": state.params,
        "optimizer": state.opt_state,
        "variables": state.variables,
        "counters": {"step": state.step, "skipped": state.skipped},
    }
