"""A batch of prompts with further columns, checked before anything is sampled for it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tunix.utils import problems as problems_lib

PROMPTS = "prompts"
FINISH_REASONS = "finish_reasons"
PROMPT_IDS = "prompt_ids"
COMPLETION_IDS = "completion_ids"

ROLLOUT_COLUMNS = (FINISH_REASONS, PROMPT_IDS, COMPLETION_IDS)
"""Columns that a reward function gets from the rollout: ``"stop"`` or ``"length"`` (cut off), and
the tokens of prompt and completion as integer arrays."""

RESERVED_COLUMNS = (*ROLLOUT_COLUMNS, "completions", "completion")
"""Names that a column of the data must not have."""

PROMPT_KEY = "prompt_key"
"""Column that tells prompts apart, if the data has it: what the curriculum counts by."""


class PromptBatchError(problems_lib.ProblemsError):
    """A batch of prompts that cannot be used, with every reason why."""

    headline = "cannot use this batch of prompts"


def check(batch: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the columns of a batch as lists, ``prompts`` first.

    Raises:
        PromptBatchError: If there are no prompts, a column is a text in place of a list, columns
            differ in length, or one has the name of what the rollout adds.
    """
    if not isinstance(batch, Mapping):
        raise PromptBatchError(
            [f"expected columns such as {{'prompts': [...]}}, got a {type(batch).__name__}"]
        )
    if PROMPTS not in batch:
        raise PromptBatchError([f"no column {PROMPTS!r}; there are {sorted(map(str, batch))}"])
    if texts := [name for name, values in batch.items() if isinstance(values, str | bytes)]:
        raise PromptBatchError(
            [f"column {name!r} is one text, not a list: write [{batch[name]!r}]" for name in texts]
        )
    columns = {PROMPTS: list(batch[PROMPTS]), **{k: list(v) for k, v in batch.items()}}
    size = len(columns[PROMPTS])
    problems = [] if size else [f"column {PROMPTS!r} is empty"]
    for name, values in columns.items():
        if len(values) != size:
            problems.append(f"column {name!r} has {len(values)} values for {size} prompts")
        if name in RESERVED_COLUMNS:
            problems.append(f"column {name!r} would hide the rollout's own; rename it")
    if problems:
        raise PromptBatchError(problems)
    return columns


def from_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return rows as columns.

    Raises:
        PromptBatchError: If a row lacks a column of the first, or there is no row.
    """
    if not rows:
        raise PromptBatchError(["there are no rows"])
    problems = [
        f"row {i} has the columns {sorted(row)}, row 0 has {sorted(rows[0])}"
        for i, row in enumerate(rows)
        if row.keys() != rows[0].keys()
    ]
    if problems:
        raise PromptBatchError(problems)
    return {name: [row[name] for row in rows] for name in rows[0]}


def concatenate(batches: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return all batches as one.

    Raises:
        PromptBatchError: If there is none, or their columns differ.
    """
    rows: list[dict[str, Any]] = []
    for batch in batches:
        columns = check(batch)
        rows += [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
    return from_rows(rows)


def repeated(values: Sequence[Any], times: int) -> list[Any]:
    """Return every value ``times`` times in a row, as the samples of a prompt stand."""
    return [value for value in values for _ in range(times)]
