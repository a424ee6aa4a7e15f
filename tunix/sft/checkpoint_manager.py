"""Checkpoints: named arrays and a JSON document per step, written asynchronously by Orbax."""

import contextlib
import os
import pathlib
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx

from tunix.models.transformer import adapter as adapter_lib
from tunix.sft import run_lock
from tunix.sft.checkpoints import checkpoint_integrity as integrity
from tunix.sft.checkpoints import checkpoint_storage as storage
from tunix.utils import tree as tree_lib

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

MINIMUM_INTERVAL_SECONDS = 180
"""How often checkpoints are written when no options say otherwise."""

_METADATA = "metadata"
_PARAMS = "params"
_OPTIMIZER = "optimizer"


def default_options() -> "ocp.CheckpointManagerOptions":
    """Return the options used when none are given: every three minutes, the last three kept."""
    import orbax.checkpoint as ocp

    return ocp.CheckpointManagerOptions(
        save_decision_policy=ocp.checkpoint_managers.ContinuousCheckpointingPolicy(
            minimum_interval_secs=MINIMUM_INTERVAL_SECONDS
        ),
        max_to_keep=3,
        cleanup_tmp_directories=True,
    )


class CheckpointManager:
    """Saves and restores the state of a run in a directory.

    A save returns as soon as the arrays are copied; a process killed while it is being written
    leaves the checkpoint before it as the latest. One process at a time can write to a directory;
    it is free again after :meth:`close`. Without a directory nothing is saved and
    there is nothing to restore.

    Args:
        root_directory: Where checkpoints go, one subdirectory per step; created if needed.
        options: How often to save and how many to keep; see :func:`default_options`.

    Raises:
        CheckpointWriteError: If the directory cannot be written.
        RunLockedError: If another process writes to it.
        CheckpointDamagedError: If the metrics of a step cannot be read.
    """

    _manager: "ocp.CheckpointManager | None"

    def __init__(
        self,
        root_directory: str | os.PathLike[str] | None = None,
        options: "ocp.CheckpointManagerOptions | None" = None,
    ):
        self._manager = None
        self._release: Callable[[], Any] = lambda: None
        if root_directory is None:
            return
        # Orbax is imported here: it is slow to load and many runs save nothing.
        import orbax.checkpoint as ocp

        self._directory = storage.absolute(root_directory)
        self._options = default_options() if options is None else options
        if not self._options.read_only:
            storage.require_writable(self._directory, num_bytes=0)
            if jax.process_index() == 0:  # the processes of one run write together
                run_lock.acquire(self._directory)
                self._release = weakref.finalize(self, run_lock.release, self._directory)
        try:
            directory = storage.literal_path(self._directory)
            self._manager = ocp.CheckpointManager(directory, options=self._options)
        except Exception as error:  # the metrics of all steps are read at once
            self._release()
            self._require_readable_documents(error)
            raise
        self._sealer = integrity.Sealer(self._directory, self._manager.is_saving_in_progress)

    @property
    def is_enabled(self) -> bool:
        """Whether there is a directory to save to."""
        return self._manager is not None

    def latest_step(self) -> int | None:
        """Return the last step that was saved completely, or ``None``."""
        return None if self._manager is None else self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """Return all steps that were saved completely, in order."""
        return [] if self._manager is None else sorted(self._manager.all_steps())

    def keep_only(self, steps: Collection[int]) -> None:
        """Delete all other steps."""
        for step in set(self.all_steps()) - set(steps):
            self._require_manager().delete(step)

    def best_step(self) -> int | None:
        """Return the best step by the ``best_fn`` of the options, or ``None``."""
        return None if self._manager is None else self._manager.best_step()

    def should_save(self, step: int) -> bool:
        """Return whether the options ask for a checkpoint at ``step``."""
        return self._manager is not None and self._manager.should_save(step)

    def require_space_for(self, arrays: Any) -> None:
        """Check that a checkpoint of these arrays fits on the disk.

        Raises:
            CheckpointWriteError: If it does not.
        """
        if self._manager is not None:
            storage.require_writable(self._directory, tree_lib.num_bytes(arrays))

    def save_state(
        self,
        step: int,
        arrays: Mapping[str, Any],
        metadata: Mapping[str, Any],
        *,
        metrics: Mapping[str, float] | None = None,
        force: bool = False,
    ) -> bool:
        """Start to save arrays and metadata, and return whether the step is saved.

        Args:
            step: The step; it must be later than the last one saved.
            arrays: Parts of the checkpoint by name, each a pytree of arrays.
            metadata: Anything that JSON can hold.
            metrics: What options with a ``best_fn`` compare checkpoints by.
            force: Save even where the options would not.

        Raises:
            CheckpointWriteError: If this or an earlier asynchronous save failed.
        """
        if self._manager is None:
            return False
        import orbax.checkpoint as ocp

        items: dict[str, Any] = {_METADATA: ocp.args.JsonSave(dict(metadata))}
        for name, tree in arrays.items():
            if named := storage.storable(tree):
                items[name] = ocp.args.PyTreeSave(named)
        with self._clear_write_errors():
            is_saved = self._manager.save(
                step, args=ocp.args.Composite(**items), metrics=metrics, force=force
            )
            if is_saved:
                self._sealer.start()
        return is_saved

    def restore_state(
        self, step: int, like: Mapping[str, Any], *, partial: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the arrays and the metadata saved at ``step``.

        Args:
            step: A saved step.
            like: Parts to restore, each a pytree of arrays or ``ShapeDtypeStruct`` that gives
                structure, shapes, dtypes and shardings. Other parts of the checkpoint are not
                read.
            partial: Whether these parts may hold other arrays, too, which are not read.

        Raises:
            CheckpointDamagedError: If what is to be read is not what was written.
            CheckpointMismatchError: Listing every array that is missing, unexpected or differs.
            FileNotFoundError: If there is no such step.
        """
        manager = self._require_manager()
        if step not in manager.all_steps():
            raise FileNotFoundError(
                f"no checkpoint of step {step} in {self._directory}; there are "
                f"{sorted(manager.all_steps())}"
            )
        expected = {name: storage.abstract(tree) for name, tree in like.items()}
        where = storage.step_directory(self._directory, self._options, step)
        if problems := list(integrity.file_problems(where, list(like))):
            raise self._damaged(where, problems)
        try:
            restored = self._restore(step, expected, where, partial)
        except storage.CheckpointMismatchError:
            raise
        except Exception as error:
            # Without checksums, only reading it shows what is wrong; what else may have failed is
            # no fault of the checkpoint.
            if problems := list(integrity.problems(where)):
                raise self._damaged(where, problems) from error
            raise
        arrays = {
            name: storage.rebuilt(tree, restored[name] if expected[name] else {})
            for name, tree in like.items()
        }
        return arrays, restored[_METADATA]

    def save(
        self,
        step: int,
        model: nnx.Module,
        optimizer: nnx.Optimizer | None = None,
        save_only_lora_params: bool = False,
        force: bool = False,
        custom_metadata: dict[str, Any] | None = None,
    ) -> bool:
        """Start to save a model and its optimizer; return whether the step is saved.

        Args:
            step: The step; it must be later than the last one saved.
            model: The model; its parameters are saved, quantised and parked ones included.
            optimizer: Saved as well if given.
            save_only_lora_params: Save the adapters and not the base model.
            force: Save even where the options would not.
            custom_metadata: Anything that JSON can hold; :meth:`maybe_restore` returns it.
        """
        arrays = {_PARAMS: _model_arrays(model, save_only_lora_params)}
        if optimizer is not None:
            arrays[_OPTIMIZER] = nnx.to_pure_dict(nnx.state(optimizer))
        return self.save_state(step, arrays, custom_metadata or {}, force=force)

    def maybe_restore(
        self,
        model: nnx.Module,
        optimizer: nnx.Optimizer | None = None,
        step: int | None = None,
        restore_only_lora_params: bool = False,
    ) -> tuple[int, dict[str, Any]]:
        """Restore model and optimizer in place, if there is a checkpoint.

        Reads what :meth:`save` wrote and the parameters of what a trainer wrote.

        Args:
            model: Receives the parameters.
            optimizer: Receives its state, if given.
            step: The step to restore; the latest by default.
            restore_only_lora_params: The checkpoint holds the adapters alone.

        Returns:
            The restored step and its metadata; ``(0, {})`` if nothing has been saved.

        Raises:
            CheckpointMismatchError: Listing every array that is missing, unexpected or differs.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            return 0, {}
        like: dict[str, Any] = {_PARAMS: _model_arrays(model, restore_only_lora_params)}
        if optimizer is not None:
            like[_OPTIMIZER] = nnx.to_pure_dict(nnx.state(optimizer))
        arrays, metadata = self.restore_state(step, like)
        nnx.update(model, arrays[_PARAMS])
        if optimizer is not None:
            nnx.update(optimizer, arrays[_OPTIMIZER])
        return step, metadata

    def wait_until_finished(self) -> None:
        """Wait until every save is complete.

        Raises:
            CheckpointWriteError: If one of them failed.
        """
        if self._manager is not None:
            with self._clear_write_errors():
                self._manager.wait_until_finished()
                self._sealer.wait()

    def close(self) -> None:
        """Finish all saves; the manager cannot be used afterwards."""
        if self._manager is not None:
            try:
                with self._clear_write_errors():
                    self._manager.close()
                    self._sealer.wait()
            finally:
                self._release()

    def _require_manager(self) -> "ocp.CheckpointManager":
        if self._manager is None:
            raise FileNotFoundError(
                "there is nothing to restore: the CheckpointManager has no root_directory"
            )
        return self._manager

    def _restore(
        self,
        step: int,
        expected: Mapping[str, Mapping[str, jax.ShapeDtypeStruct]],
        where: pathlib.Path,
        partial: bool,
    ) -> Any:
        """Return what Orbax reads, or raise one error that lists all arrays that do not fit."""
        import orbax.checkpoint as ocp

        problems = []
        items: dict[str, Any] = {_METADATA: ocp.args.JsonRestore()}
        for item, wanted in expected.items():
            found: Any = {}
            if (where / item).exists():
                folder = storage.literal_path(where / item)
                found = ocp.PyTreeCheckpointHandler().metadata(folder).tree
            named = tree_lib.named_leaves(found)
            if partial:
                named = {name: x for name, x in named.items() if name in wanted}
            problems += storage.differences(item, wanted, named)
            if wanted:
                restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
                items[item] = ocp.args.PyTreeRestore(
                    wanted, restore_args=restore_args, partial_restore=partial
                )
        if problems:
            raise storage.CheckpointMismatchError(str(where), problems)
        return self._require_manager().restore(step, args=ocp.args.Composite(**items))

    def _require_readable_documents(self, error: Exception) -> None:
        """Raise what is wrong with a checkpoint that kept Orbax from reading the others."""
        for where in storage.step_directories(self._directory, self._options).values():
            if problems := list(integrity.document_problems(where)):
                raise self._damaged(where, problems) from error

    def _damaged(self, where: pathlib.Path, problems: list[str]) -> storage.CheckpointDamagedError:
        steps = storage.step_directories(self._directory, self._options)
        sound = [
            step
            for step, path in steps.items()
            if path != where and next(integrity.problems(path), None) is None
        ]
        return storage.CheckpointDamagedError(str(where), problems, sound)

    @contextlib.contextmanager
    def _clear_write_errors(self) -> Iterator[None]:
        """Turn whatever Orbax raises while writing into one message with directory and remedy."""
        try:
            yield
        except Exception as error:
            # Where in its own files the store stood is of no use to anyone.
            reason = str(error).splitlines()[0].partition(" [")[0] if str(error) else repr(error)
            if isinstance(error, OSError) and error.strerror:
                reason = error.strerror
            latest = self.latest_step()
            kept = (
                "there is no complete one yet" if latest is None else f"step {latest} is complete"
            )
            raise storage.CheckpointWriteError(
                f"could not write a checkpoint to {self._directory}: {reason}; check free space "
                f"and permissions or choose another checkpoint_root_directory ({kept})"
            ) from error


def _model_arrays(model: nnx.Module, only_lora: bool) -> dict[str, Any]:
    kind = nnx.LoRAParam if only_lora else nnx.filterlib.Any(nnx.Param, adapter_lib.Frozen)
    return nnx.to_pure_dict(nnx.state(model, kind))
