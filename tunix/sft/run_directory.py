"""The directory of a run: everything a user looks at later is in it, always under the same name."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

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
    def summary(self) -> pathlib.Path:
        """What came out in the end."""
        return self.path / "summary.json"

    def write_config(self, resolved_yaml: str) -> None:
        """Write the resolved configuration."""
        with self._clear_errors():
            self.config.write_text(resolved_yaml, encoding="utf-8")

    def append_completions(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append completions; every row has the ``step`` it was sampled for.

        Raises:
            RunDirectoryError: If they cannot be written.
        """
        with self._clear_errors():
            json_lines.append(self.completions, rows)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary."""
        with self._clear_errors():
            self.summary.write_text(json.dumps(dict(summary), indent=2) + "\n", encoding="utf-8")

    def truncate_after(self, step: int) -> None:
        """Set aside completions of later steps, which a run resumed at ``step`` samples again.

        Metrics are cut by the :class:`~tunix.sft.metrics_logger.MetricsLogger` that writes them.
        """
        json_lines.truncate_after(self.completions, step)

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunDirectoryError(
                f"cannot write to the run directory {self.path}: {error.strerror}; free some "
                "space, make it writable or choose another one"
            ) from error
