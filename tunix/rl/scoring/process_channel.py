"""Whole messages between two processes, in time or not at all. Only the standard library."""

import socket
import struct
import time
from collections.abc import Callable
from typing import Any

_HEADER = struct.Struct("!Q")
_PIECE = 1 << 20
_LOOK_SECONDS = 0.5
"""How long to wait before looking whether the other side still lives."""


class TooLongError(ValueError):
    """A message that claims to be longer than any that is expected."""


class Channel:
    """One end of a socket.

    Args:
        end: The socket; it is closed with the channel.
        is_alive: Whether there is someone at the other end. A closed socket alone does not say
            so: processes that the other side has started may hold it open.
        most_bytes: The longest message that is read; ``None`` for any.
    """

    def __init__(
        self,
        end: socket.socket,
        *,
        is_alive: Callable[[], bool] = lambda: True,
        most_bytes: int | None = None,
    ):
        self._end, self._is_alive, self._most_bytes = end, is_alive, most_bytes

    def send(self, message: bytes, *, deadline: float | None = None) -> None:
        """Send a message.

        Args:
            message: Any bytes.
            deadline: By ``time.monotonic()``; ``None`` waits as long as the other side lives.

        Raises:
            TimeoutError: If it is not all sent in time.
            EOFError: If the other side is gone.
        """
        rest = memoryview(_HEADER.pack(len(message)) + message)
        while rest:
            rest = rest[self._within(deadline, self._end.send, rest[:_PIECE]) :]

    def receive(self, *, deadline: float | None = None) -> bytes:
        """Return the next message, all of it.

        Raises:
            TimeoutError: If its end has not come in time.
            EOFError: If the other side is gone.
            TooLongError: If it is no message of ours.
        """
        (size,) = _HEADER.unpack(self._exactly(_HEADER.size, deadline))
        if self._most_bytes is not None and size > self._most_bytes:
            raise TooLongError(f"a message of {size} bytes; at most {self._most_bytes} are read")
        return self._exactly(size, deadline)

    def close(self) -> None:
        """Close the socket."""
        self._end.close()

    def _exactly(self, size: int, deadline: float | None) -> bytes:
        found = bytearray()
        while len(found) < size:
            piece = self._within(deadline, self._end.recv, min(_PIECE, size - len(found)))
            if not piece:
                raise EOFError
            found += piece
        return bytes(found)

    def _within(self, deadline: float | None, action: Callable[[Any], Any], argument: Any) -> Any:
        """Return what one call of the socket gives, in time and while the other side lives."""
        while True:
            was_alive = self._is_alive()  # before the call: what it has sent by then can be read
            left = _LOOK_SECONDS
            if deadline is not None:
                left = min(left, deadline - time.monotonic())
            if left <= 0.0:
                raise TimeoutError
            try:
                self._end.settimeout(left)
                return action(argument)
            except TimeoutError:
                if not was_alive:
                    raise EOFError from None
            except OSError:  # a connection that is broken, or closed
                raise EOFError from None
