"""``completions.jsonl``: every completion of a run, with its rewards, to look at later."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from tunix.rl import trajectory
from tunix.utils import json_lines


class CompletionsLog:
    """Appends completions to a file.

    Args:
        path: The file; ``None`` writes nothing.
    """

    def __init__(self, path: pathlib.Path | None):
        self._path = path

    def append(self, groups: Sequence[trajectory.Group], *, step: int) -> None:
        """Append one line per completion of the rollout that ended with ``step``."""
        if self._path is not None:
            json_lines.append(self._path, rows(groups, step=step))

    def truncate_after(self, step: int) -> None:
        """Set aside the completions of later steps: a resumed run samples them again."""
        if self._path is not None:
            json_lines.truncate_after(self._path, step)


def rows(groups: Sequence[trajectory.Group], *, step: int) -> Iterator[dict[str, Any]]:
    """Yield one row per completion."""
    for group in groups:
        for member in group.trajectories:
            yield {
                "step": step,
                "prompt": group.prompt,
                "prompt_key": group.prompt_key,
                "completion": member.text,
                "rewards": dict(member.rewards),
                "reward": member.reward,
                "advantage": member.advantage,
                "log_ratio": member.log_ratio,
                "finish_reason": member.finish_reason,
                "num_tokens": len(member.completion_ids),
                "policy_version": member.policy_version,
            }
