"""An event file for TensorBoard, written by whoever calls.

``tensorboardX.SummaryWriter`` has a thread of its own, which a full disk kills; whoever then
flushes or closes the writer, the end of the program included, waits for ever.
"""

import os
import pathlib
import time
from typing import Any

from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

_PROTO: Any = event_pb2
"""Its messages are made when it is imported, so that no type checker knows them."""


class TensorboardFile:
    """One event file.

    Args:
        log_dir: Its directory; made if needed.
        purge_step: TensorBoard hides what older files have logged from this step on.

    Raises:
        OSError: From here and from every method, if the file cannot be written.
    """

    def __init__(self, log_dir: str | os.PathLike[str], purge_step: int | None = None):
        pathlib.Path(log_dir).mkdir(parents=True, exist_ok=True)
        self._writer = event_file_writer.EventsWriter(os.path.join(log_dir, "events"))
        if purge_step is not None:
            started = _PROTO.SessionLog(status=_PROTO.SessionLog.START)
            self._write(_PROTO.Event(session_log=started), purge_step)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Add a number."""
        self._write(_PROTO.Event(summary=summary.scalar(name, value)), step)

    def add_text(self, name: str, text: str) -> None:
        """Add a text, which belongs to no step."""
        self._write(_PROTO.Event(summary=summary.text(name, text)), 0)

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Write everything and close the file."""
        self._writer.close()

    def _write(self, event: Any, step: int) -> None:
        event.wall_time, event.step = time.time(), step
        self._writer.write_event(event)
