"""What a checkpoint of a training run consists of, and how a run continues from one."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from tunix.sft import checkpoint_manager, train_state

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands besides its arrays; stored as JSON."""

    iter_steps: int
    """Batches consumed."""
    data_state: Mapping[str, Any]
    """Position in the data, see :meth:`tunix.sft.train_data.TrainData.state`."""
    custom: Mapping[str, Any]
    """What the user of the trainer wants back."""
    stopping: Mapping[str, Any] | None = None
    """State of early stopping."""
    skipped_last: int = 0
    """Steps in a row, up to this one, whose loss or gradient was not finite."""


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
        CheckpointMismatchError: Listing every array that does not fit.
        CheckpointWriteError: If there is nothing to restore and no room for a first checkpoint.
    """
    step = manager.latest_step()
    if step is None:
        manager.require_space_for(state)
        return None
    parts, metadata = manager.restore_state(step, _parts(state))
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


def _parts(state: train_state.TrainState) -> dict[str, Any]:
    return {
        "params": state.params,
        "optimizer": state.opt_state,
        "variables": state.variables,
        "counters": {"step": state.step, "skipped": state.skipped},
    }
