"""Watching for skipped steps: says which were skipped and why, and keeps their batches."""

import collections
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tunix.sft import step_handle, train_step, training_config
from tunix.utils import tree as tree_lib

_LOG = logging.getLogger(__name__)

MAX_DUMPS = 10
"""Batches saved per run: enough to replay the fault, too few to fill the disk."""


def dump_directory(config: training_config.TrainingConfig) -> pathlib.Path | None:
    """Return where batches of skipped steps go: beside the metrics, else the checkpoints."""
    if config.metrics_logging_options is not None:
        return config.metrics_logging_options.directory / "nonfinite"
    if config.checkpoint_root_directory is not None:
        return pathlib.Path(config.checkpoint_root_directory) / "nonfinite"
    return None


class SkippedStepWatch:
    """Holds on to the batches of steps in flight until their status is known.

    Args:
        directory: Where batches of non-finite steps are saved as ``step_N.npz``; ``None`` saves
            none.
        max_inflight: Steps that may still be computing. Only older ones are read, so watching
            never makes the host wait for the device.
    """

    def __init__(self, directory: pathlib.Path | None, max_inflight: int):
        self._directory = directory
        self._max_inflight = max_inflight
        self._pending: collections.deque[tuple[step_handle.StepHandle, Sequence[Any]]] = (
            collections.deque()
        )
        self._dumps = 0

    def add(self, handle: step_handle.StepHandle, micro_batches: Sequence[Any]) -> None:
        """Watch a step that was just dispatched, and look at those that are done."""
        self._pending.append((handle, micro_batches))
        while len(self._pending) > self._max_inflight:
            self._check(*self._pending.popleft())

    def flush(self) -> None:
        """Look at every step, waiting for those in flight."""
        while self._pending:
            self._check(*self._pending.popleft())

    def _check(self, handle: step_handle.StepHandle, micro_batches: Sequence[Any]) -> None:
        status = int(handle.metrics["status"])
        if status == train_step.EMPTY:
            _LOG.warning(
                "step %d was skipped: nothing in its batch has loss weight; check the data's masks",
                handle.step,
            )
        if status == train_step.NONFINITE:
            _LOG.warning(
                "step %d was skipped: loss %s, gradient norm %s; %s",
                handle.step,
                handle.metrics["loss"],
                handle.metrics["grad_norm"],
                self._dump(handle.step, micro_batches),
            )

    def _dump(self, step: int, micro_batches: Sequence[Any]) -> str:
        """Save a batch and say where."""
        if self._directory is None:
            return "set metrics_logging_options.log_dir to have such batches saved"
        if self._dumps == MAX_DUMPS:
            return f"its batch was not saved: {self._directory} holds {MAX_DUMPS} already"
        self._dumps += 1
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"step_{step}.npz"
        named = tree_lib.named_leaves({str(i): batch for i, batch in enumerate(micro_batches)})
        arrays: dict[str, Any] = {name: _storable(leaf) for name, leaf in named.items()}
        np.savez(path, **arrays)
        return f"its batch is in {path}"


def _storable(leaf: Any) -> np.ndarray:
    """Return a leaf as an array that ``np.load`` reads: no bfloat16, no random keys."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return array.astype(np.float32) if array.dtype == jnp.bfloat16 else array
