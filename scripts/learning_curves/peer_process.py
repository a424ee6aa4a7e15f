"""The side of the comparison that trains, in a process of its own. Standard library alone.

The parent sends the job as one JSON line. Whenever the worker has replies, it sends them and gets
their rewards back, so all sides are rewarded by the same code. At the end it sends its facts.
"""

import json
import os
import resource
import sys
from collections.abc import Sequence
from typing import Any


class Parent:
    """The process that started this one."""

    def __init__(self) -> None:
        # Libraries print; only our lines may go to the channel.
        self._channel = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.job: dict[str, Any] = json.loads(sys.stdin.readline())

    @property
    def questions(self) -> list[str]:
        """All questions, in the order in which they are to be asked."""
        return self.job["questions"]

    def score(
        self,
        rows: Sequence[Any],
        completions: Sequence[str],
        ended: Sequence[bool],
        lengths: Sequence[int],
    ) -> list[float]:
        """Return the rewards of the replies of a rollout.

        Args:
            rows: Which question each one answers.
            completions: The replies as text, without special tokens.
            ended: Whether each one ended by itself.
            lengths: Tokens of each, its end included.
        """
        replies = {
            "rows": [int(row) for row in rows],
            "completions": list(completions),
            "ended": [bool(flag) for flag in ended],
            "lengths": [int(length) for length in lengths],
        }
        self._send(replies)
        return json.loads(sys.stdin.readline())

    def finish(self, facts: dict[str, Any]) -> None:
        """Send what there is to say at the end, resources and versions with it."""
        import worker

        usage = resource.getrusage(resource.RUSAGE_SELF)
        self._send(
            {
                **facts,
                "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
                "peak_mb": round(usage.ru_maxrss / 1024),
                "versions": worker.versions(),
            }
        )

    def _send(self, message: dict[str, Any]) -> None:
        print(json.dumps(message), file=self._channel)
