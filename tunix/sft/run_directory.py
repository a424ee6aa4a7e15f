"""The directory of a run: everything a user looks at later is in it, always under the same name."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tunix.sft import run_lock
from tunix.utils import json_lines


class RunDirectoryError(OSError):
    """A run directory that cannot be used; names it and the remedy."""


class RunDirectory:
    """Names of the files of a run, and the few ways of writing them.

    Args:
        path: The directory; made if needed.

    Raises:
        RunDirectoryError: If it cannot be created or written.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(os.path.abspath(os.path.expanduser(path)))
        probe = self.path / ".write_probe"
        if self.path.is_file():
            raise RunDirectoryError(
                f"the run directory {self.path} is a file; choose another one, or remove the file"
            )
        with self._clear_errors():
            self.path.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"probe")
            probe.unlink()

    @property
    def config(self) -> pathlib.Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> pathlib.Path:
        """Metrics, one JSON line per step."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> pathlib.Path:
        """Directory of TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def completions(self) -> pathlib.Path:
        """Sampled completions with their rewards, one JSON line each."""
        return self.path / "completions.jsonl"

    @property
    def generations(self) -> pathlib.Path:
        """Directory of the replies of every evaluation by generation."""
        return self.path / "generations"

    @property
    def checkpoints(self) -> pathlib.Path:
        """Directory of checkpoints."""
        return self.path / "checkpoints"

    @property
    def nonfinite(self) -> pathlib.Path:
        """Directory of batches whose loss or gradient was not finite."""
        return self.path / "nonfinite"

    @property
    def baseline(self) -> pathlib.Path:
        """What was measured before training."""
        return self.path / "baseline.json"

    @property
    def summary(self) -> pathlib.Path:
        """What came out in the end."""
        return self.path / "summary.json"

    def owned(self) -> contextlib.AbstractContextManager[None]:
        """Keep other processes from writing here while the body runs.

        Raises:
            RunLockedError: If one does already.
        """
        return run_lock.owned(self.path)

    def write_config(self, resolved_yaml: str) -> None:
        """Write the resolved configuration."""
        self._write(self.config, resolved_yaml)

    def append_completions(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append completions; every row has the ``step`` it was sampled for.

        Raises:
            RunDirectoryError: If they cannot be written.
        """
        with self._clear_errors():
            json_lines.append(self.completions, rows)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary."""
        self._write(self.summary, json.dumps(dict(summary), indent=2) + "\n")

    def write_baseline(self, measured: Mapping[str, Any]) -> None:
        """Write what was measured before training."""
        self._write(self.baseline, json.dumps(dict(measured), indent=2) + "\n")

    def truncate_after(self, step: int) -> None:
        """Set aside completions of later steps, which a run resumed at ``step`` samples again.

        Metrics are cut by the :class:`~tunix.sft.metrics_logger.MetricsLogger` that writes them.
        """
        json_lines.truncate_after(self.completions, step)

    def _write(self, path: pathlib.Path, text: str) -> None:
        """Write a file that is there as a whole or not at all."""
        with self._clear_errors():
            draft = path.with_name(f"{path.name}.tmp")
            draft.write_text(text, encoding="utf-8")
            draft.replace(path)

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunDirectoryError(
                f"cannot write to the run directory {self.path}: {error.strerror}; free some "
                "space, make it writable or choose another one"
            ) from error
