"""``completions.jsonl``: every completion of a run, with its rewards, to look at later."""

import math
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
    """Yield one row per completion, with those columns of the data that hold a text or a number."""
    for group in groups:
        columns = {k: value for k, value in group.columns.items() if _is_plain(value)}
        for member in group.trajectories:
            yield {
                "step": step,
                "prompt": group.prompt,
                "prompt_key": group.prompt_key,
                "columns": columns,
                "completion": member.text,
                "rewards": dict(member.rewards),
                "reward": member.reward,
                "advantage": member.advantage,
                "log_ratio": member.log_ratio,
                "finish_reason": member.finish_reason,
                "num_tokens": member.num_sampled,
                "policy_version": member.policy_version,
            }


def _is_plain(value: object) -> bool:
    """Return whether a value of the data is one text or number, as an answer or a label is."""
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
