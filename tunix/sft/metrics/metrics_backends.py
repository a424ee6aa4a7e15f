"""Where metrics go: JSON lines, TensorBoard, W&B, the console. One small class adds another.

Backends are called from one thread, the writer's, and may be slow.
"""

import abc
import hashlib
import importlib.util
import json
import math
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, Literal, Protocol, TextIO, runtime_checkable

from tunix.utils import json_lines


class LoggingBackend(Protocol):
    """What every backend does."""

    def log_scalar(self, event: str, value: float, step: int) -> None:
        """Record ``value`` under the name ``event``, e.g. ``train/loss``."""

    def close(self) -> None:
        """Write what is left and release all resources."""


@runtime_checkable
class FlushableBackend(Protocol):
    """A backend that holds scalars back."""

    def flush(self) -> None:
        """Write what is held back."""


@runtime_checkable
class TruncatableBackend(Protocol):
    """A backend that can forget what a resumed run will log again."""

    def truncate_after(self, step: int) -> None:
        """Drop everything logged for steps after ``step``."""


class StepBackend(abc.ABC):
    """Collects the scalars of a step, which arrive one after the other, and writes them at once."""

    def __init__(self):
        """Begin without any."""
        self._step = 0
        self._values: dict[str, float] = {}

    def log_scalar(self, event: str, value: float, step: int) -> None:
        """Add a scalar to those of ``step``; a step that is logged again is written twice."""
        if step != self._step or event in self._values:
            self._end_step()
        self._step = step
        self._values[event] = value

    def flush(self) -> None:
        """Write the step in progress."""
        self._end_step()

    def close(self) -> None:
        """Write the step in progress."""
        self._end_step()

    @abc.abstractmethod
    def write_step(self, step: int, values: Mapping[str, float]) -> None:
        """Write the scalars of one step, at least one."""

    def _end_step(self) -> None:
        if self._values:
            self.write_step(self._step, self._values)
            self._values = {}


class JsonLinesBackend(StepBackend):
    """One line per step: ``{"step": 3, "train/loss": 1.25, ...}``.

    Scalars of one step that arrive one after the other share a line. What JSON has no numbers
    for is written as the strings ``"nan"``, ``"inf"`` and ``"-inf"``, which ``float`` reads.
    """

    def __init__(self, path: str | os.PathLike[str]):
        super().__init__()
        self._path = pathlib.Path(path)
        self._file: TextIO | None = None

    def write_step(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8")
        shown = {name: v if math.isfinite(v) else str(v) for name, v in values.items()}
        self._file.write(json.dumps({"step": step, **shown}) + "\n")

    def flush(self) -> None:
        """Write the line in progress and hand everything to the operating system."""
        super().flush()
        if self._file is not None:
            self._file.flush()

    def truncate_after(self, step: int) -> None:
        """Move lines of later steps to ``<file>.dropped``."""
        self.close()
        json_lines.truncate_after(self._path, step)

    def close(self) -> None:
        """Write the line in progress and close the file."""
        super().close()
        if self._file is not None:
            self._file.close()
            self._file = None


class TensorboardBackend:
    """Event files for TensorBoard.

    Args:
        log_dir: Directory of the event files.
        title: Shown on the text tab: which project and run this is.

    Raises:
        ImportError: If ``tensorboardX`` is not installed.
    """

    def __init__(self, log_dir: str | os.PathLike[str], title: str = ""):
        if importlib.util.find_spec("tensorboardX") is None:
            raise ImportError(
                "event files for TensorBoard need the package tensorboardX: "
                "pip install 'tunix[tensorboard]'"
            )
        self._log_dir = str(log_dir)
        self._title = title
        self._purge_step: int | None = None
        self._writer: Any = None

    def log_scalar(self, event: str, value: float, step: int) -> None:
        """Add a scalar."""
        if self._writer is None:
            # Here, in the writer thread: it takes a second to import.
            from tunix.sft.metrics import tensorboard_file

            self._writer = tensorboard_file.TensorboardFile(self._log_dir, self._purge_step)
            if self._title:
                self._writer.add_text("run", self._title)
        self._writer.add_scalar(event, value, step)

    def flush(self) -> None:
        """Write all events."""
        if self._writer is not None:
            self._writer.flush()

    def truncate_after(self, step: int) -> None:
        """Have TensorBoard hide what was logged for later steps."""
        self.close()
        self._purge_step = step + 1

    def close(self) -> None:
        """Write all events and close the file."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()


class WandbBackend(StepBackend):
    """A run of Weights and Biases.

    A resumed run goes on in the same W&B run; steps that it logs again are ignored there, as W&B
    keeps what came first.

    Args:
        directory: Where W&B keeps its files; a ``wandb`` directory is made in it.
        project: Name of the project.
        name: Name of the run; by default that of the directory.
        mode: ``offline`` writes files only, for ``wandb sync`` later.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        project: str = "tunix",
        name: str = "",
        mode: Literal["online", "offline"] = "online",
    ):
        if importlib.util.find_spec("wandb") is None:
            raise ImportError(
                "logging to Weights and Biases needs the package wandb: pip install 'tunix[wandb]'"
            )
        super().__init__()
        self._directory = pathlib.Path(os.path.abspath(directory))
        self._project, self._mode = project, mode
        self._name = name or self._directory.name
        self._run: Any = None

    def write_step(self, step: int, values: Mapping[str, float]) -> None:
        """Hand the step to W&B."""
        if self._run is None:
            self._run = self._start()
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Send what is left and end the run."""
        super().close()
        if self._run is not None:
            self._run.finish()
            self._run = None

    def _start(self) -> Any:
        # Here, in the writer thread: it takes seconds to import, and is an extra.
        import wandb  # pyright: ignore[reportMissingImports]

        self._directory.mkdir(parents=True, exist_ok=True)
        # The same directory is the same run, in another process too.
        identity = hashlib.sha256(str(self._directory).encode()).hexdigest()[:16]
        return wandb.init(
            project=self._project,
            name=self._name,
            id=identity,
            resume="allow",
            dir=str(self._directory),
            mode=self._mode,
        )


class ConsoleBackend(StepBackend):
    """One readable line per step on standard output.

    Args:
        stream: Where to print instead.
    """

    def __init__(self, stream: TextIO | None = None):
        super().__init__()
        self._stream = stream

    def write_step(self, step: int, values: Mapping[str, float]) -> None:
        """Print one line."""
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        print(f"step {step}  {shown}", file=self._stream or sys.stdout, flush=True)
