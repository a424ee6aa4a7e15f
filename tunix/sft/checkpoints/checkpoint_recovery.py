"""Continues a run from an older checkpoint when the newest ones are damaged."""

import contextlib
import logging
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import jax

from tunix.sft import run_lock
from tunix.sft.checkpoints import checkpoint_integrity as integrity
from tunix.sft.checkpoints import checkpoint_storage as storage

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

Resume = Literal["latest", "newest-sound"]
CHOICES: tuple[Resume, ...] = get_args(Resume)

_LOG = logging.getLogger(__name__)


def set_aside_damaged(
    roots: Sequence[pathlib.Path], options: "ocp.CheckpointManagerOptions"
) -> None:
    """Move damaged checkpoints out of the way, so that the newest sound one is the latest.

    They go to a directory beside the others whose name ends in ``.damaged``, with their steps as
    names. Older ones than the newest sound step are left alone, unless they keep the others from
    being listed.

    Args:
        roots: The directory of a run's checkpoints, and those of what else has to be there at the
            same step.
        options: How steps are named.

    Raises:
        CheckpointDamagedError: If no step is sound.
        RunLockedError: If another process writes to one of the directories.
    """
    if jax.process_index() == 0:
        with contextlib.ExitStack() as stack:
            for root in filter(pathlib.Path.is_dir, roots):
                stack.enter_context(run_lock.owned(root))
            _set_aside(roots, options)
    if jax.process_count() > 1:  # the others must not list them before
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("tunix.set_aside_damaged")


def _set_aside(roots: Sequence[pathlib.Path], options: "ocp.CheckpointManagerOptions") -> None:
    steps = storage.step_directories(roots[0], options)
    damaged: dict[int, list[str]] = {}
    newest = None
    for step in reversed(steps):
        places = [storage.step_directory(root, options, step) for root in roots]
        examine = integrity.problems if newest is None else _unlistable
        if problems := [problem for place in places for problem in examine(place)]:
            damaged[step] = problems
        elif newest is None:
            newest = step
    if damaged and newest is None:
        where = storage.step_directory(roots[0], options, max(damaged))
        raise storage.CheckpointDamagedError(str(where), damaged[max(damaged)], [])
    for step, problems in damaged.items():
        _LOG.warning(
            "the checkpoint of step %d is damaged and set aside: %s", step, "; ".join(problems[:2])
        )
        for root in roots:
            if (place := storage.step_directory(root, options, step)).exists():
                place.rename(_free_name(root.with_name(f"{root.name}.damaged"), place.name))


def _unlistable(place: pathlib.Path) -> list[str]:
    """Return what keeps Orbax from listing steps older than the one that is wanted."""
    found = place / integrity.METRICS_DOCUMENT
    return list(integrity.document_problems(place)) if found.parent.is_dir() else []


def _free_name(folder: pathlib.Path, name: str) -> pathlib.Path:
    folder.mkdir(exist_ok=True)
    candidates = [folder / name, *(folder / f"{name}-{i}" for i in range(2, 1000))]
    return next(path for path in candidates if not path.exists())
