"""Watching for numbers that are none: which steps were skipped and why, and when to give up."""

import collections
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tunix.sft import training_config
from tunix.sft.loop import step_handle, train_step
from tunix.utils import tree as tree_lib

_LOG = logging.getLogger(__name__)

MAX_DUMPS = 10
"""Batches saved per run: enough to replay the fault, too few to fill the disk."""


class DivergedError(ValueError):
    """A training that came to weights or losses that are not finite: nothing learns from them."""


def require_finite(arrays: Mapping[str, Any], step: int) -> None:
    """Raise if an array that ``step`` left behind holds NaN or infinity.

    Raises:
        DivergedError: Names the arrays.
    """
    floating = {name: x for name, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    counts = jax.device_get(_count_bad(floating))
    bad = [f"{int(n)} of {floating[name].size} values of {name}" for name, n in counts.items() if n]
    if bad:
        more = f" and {len(bad) - 3} other arrays" if len(bad) > 3 else ""
        raise DivergedError(
            f"after step {step} the weights are not finite: {', '.join(bad[:3])}{more}. They are "
            "not saved, and checkpoints before them are sound. Lower the learning rate, warm it "
            "up, or bound the gradient (max_grad_norm), and start from a sound checkpoint"
        )


@jax.jit
def _count_bad(arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: (~jnp.isfinite(x)).sum() for name, x in arrays.items()}


def dump_directory(config: training_config.TrainingConfig) -> pathlib.Path | None:
    """Return where batches of skipped steps go: beside the metrics, else the checkpoints."""
    if config.metrics_logging_options is not None:
        return config.metrics_logging_options.directory / "nonfinite"
    if config.checkpoint_root_directory is not None:
        return pathlib.Path(config.checkpoint_root_directory).expanduser() / "nonfinite"
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
        self._skipped = 0
        self.skipped_last = 0
        """Steps in a row, up to the last one known, that were not finite; part of a checkpoint."""

    def require_learned(self, steps: int, skipped: int) -> None:
        """Raise if the losses at the end were not finite: of every step, or of the last two.

        One such batch is an accident, and its step was skipped. Call it when all steps are known.

        Args:
            steps: Of the whole run.
            skipped: How many of them were not finite.

        Raises:
            DivergedError: Says how many steps changed nothing.
        """
        if skipped and (skipped == steps or self.skipped_last > 1):
            raise DivergedError(
                f"loss or gradient was not finite in {skipped} of {steps} steps, the last "
                f"{self.skipped_last} in a row, and these changed nothing; look at the batches of "
                "the warnings above, and lower the learning rate if it is not the data"
            )

    @property
    def skipped(self) -> int:
        """Steps known to be skipped because they were not finite."""
        return self._skipped

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
        self._skipped += status == train_step.NONFINITE
        self.skipped_last = self.skipped_last + 1 if status == train_step.NONFINITE else 0
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
