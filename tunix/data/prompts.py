"""Prompts to sample from, with the columns that rewards read.

A prompt is text, taken as it stands, or a list of messages for the chat template. Batches
hold plain lists: what becomes of a prompt is the sampler's affair.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from tunix.data import errors, fingerprint, formats, iterators, report, sources
from tunix.data import messages as messages_lib
from tunix.utils import config

PROMPTS = "prompts"
_PROMPT_COLUMNS = (PROMPTS, "prompt")
_RESERVED_COLUMNS = (
    PROMPTS,
    "completions",
    "completion",
    "finish_reasons",
    "prompt_ids",
    "completion_ids",
)

PromptBatch = dict[str, list[Any]]


class PromptTokenizer(Protocol):
    """What prompts need from a tokenizer; ``TokenizerAdapter`` has it."""

    def encode_prompt(self, prompt: str | Sequence[Mapping[str, Any]]) -> list[int]:
        """Return what a sampler should continue."""
        ...

    def lacks_chat_template(self, text: str) -> bool:
        """Return whether there is a chat template that nobody has applied to ``text``."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptConfig(config.Config):
    """Which rows are asked, and how."""

    prompt_column: str | None = None
    """Column of the prompts; ``prompts`` or ``prompt``, whichever the data has, when unset."""

    system_prompt: str | None = None
    """The system message before every prompt; text becomes the user's message after it."""

    too_long: Literal["error", "filter"] = "error"
    """What happens to a row whose prompt is longer than ``max_prompt_length``. None is cut."""

    solve_rate_column: str | None = None
    """Column with the share of tries that solve the row's prompt, as measured before."""

    min_solve_rate: float = 0.0
    """Rows with a lower rate are left out, and counted: they are too hard."""

    max_solve_rate: float = 1.0
    """Rows with a higher rate are left out, and counted: they are too easy."""

    batch_size: int = 8
    """Prompts per batch, which are those of a rollout."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        yield from config.choice_problems(self, {"too_long": ("error", "filter")})
        yield from config.below_one(self, "batch_size")
        if not 0.0 <= self.min_solve_rate <= self.max_solve_rate <= 1.0:
            yield (
                "min_solve_rate and max_solve_rate must be shares in order, 0 <= min <= max <= 1, "
                f"got {self.min_solve_rate} and {self.max_solve_rate}"
            )
        is_filtered = (self.min_solve_rate, self.max_solve_rate) != (0.0, 1.0)
        if self.solve_rate_column is None and is_filtered:
            yield (
                "min_solve_rate and max_solve_rate are not read without solve_rate_column; name "
                "the column, or remove them"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptDataConfig(PromptConfig):
    """How rows become batches of prompts."""

    max_prompt_length: int | None = None
    """Tokens a prompt may have; ``None`` checks nothing."""

    shuffle_seed: int | None = 0
    """``None`` keeps the order of the data."""

    num_epochs: int | None = 1
    """``None`` repeats the data for ever."""

    last_batch: Literal["drop", "keep"] = "drop"
    """What happens to a short last batch."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        yield from config.choice_problems(self, {"last_batch": ("drop", "keep")})
        yield from config.below_one(self, "max_prompt_length", "num_epochs")
        if self.shuffle_seed is not None and self.shuffle_seed < 0:
            yield f"shuffle_seed must not be negative, got {self.shuffle_seed}"


def load(
    source: sources.Source,
    tokenizer: PromptTokenizer,
    settings: PromptDataConfig,
    *,
    name: str | None = None,
) -> tuple[iterators.Batches[PromptBatch], report.DataReport]:
    """Return batches ``{"prompts": [...], column: [...]}`` of ``source`` and a report.

    Args:
        source: See :data:`tunix.data.sources.Source`; every row has the first one's columns.
        tokenizer: A ``TokenizerAdapter``, to count tokens.
        settings: See :class:`PromptDataConfig`.
        name: What reports and errors call the data; its path, or ``prompts``.

    Raises:
        DataError: Lists every row without a usable prompt or with other columns.
    """
    kept, account = load_rows(source, tokenizer, settings, name=name)
    return batches_of(kept, settings), account


def batches_of(
    rows: Sequence[Mapping[str, Any]], settings: PromptDataConfig
) -> iterators.Batches[PromptBatch]:
    """Return the batches of what :func:`load_rows` returned."""
    content = fingerprint.combined(map(fingerprint.of_row, rows))
    return iterators.Batches.of(rows, settings, _collate, content=content)


def load_rows(
    source: sources.Source,
    tokenizer: PromptTokenizer,
    settings: PromptDataConfig,
    *,
    name: str | None = None,
) -> tuple[list[Mapping[str, Any]], report.DataReport]:
    """Return the rows that :func:`load` makes batches of, and a report.

    Args:
        source: See :data:`tunix.data.sources.Source`.
        tokenizer: A ``TokenizerAdapter``, to count tokens.
        settings: What rows are left out.
        name: As for :func:`load`.

    Raises:
        DataError: As :func:`load`.
    """
    problems: list[str] = []
    rows = sources.read_rows(source, problems=problems)
    if name is None:
        name = str(source) if isinstance(source, str | pathlib.Path) else "prompts"
    column = settings.prompt_column or _find_prompt_column(rows, name, problems)
    account = report.DataReport(source=name, trained_tokens=None)
    kept: list[Mapping[str, Any]] = []
    for row in rows:
        found = [*_row_problems(row, column, rows[0]), *_rate_problems(row, settings)]
        if not found and not _is_in_range(row, settings, account):
            continue
        if not found:
            try:
                prompt = _prompt_of(row.values[column], settings.system_prompt)
                length = len(tokenizer.encode_prompt(prompt))
            except ValueError as error:
                found = [f"{row.where}: {error}"]
            else:
                if _fits(length, row.where, settings, account, found):
                    kept.append(_with_prompts_first(row.values, column, prompt))
                    is_text = isinstance(prompt, str)
                    account.plain_rows += is_text and tokenizer.lacks_chat_template(prompt)
        problems += found
    if not kept and not problems:
        problems.append(f"no prompt is left; {account}")
    if problems:
        raise errors.DataError(name, problems)
    return kept, account


def _collate(rows: Sequence[Sequence[Mapping[str, Any]]]) -> PromptBatch:
    flat = [example for row in rows for example in row]
    return {column: [example[column] for example in flat] for column in flat[0]}


def _find_prompt_column(rows: Sequence[sources.Row], name: str, problems: list[str]) -> str:
    """Return the column of the first row that has one; without any, raise with ``problems``."""
    for row in rows:
        for column in _PROMPT_COLUMNS:
            if column in row.values:
                return column
    missing = [sources.missing_column(row, PROMPTS) + "; set prompt_column" for row in rows]
    raise errors.DataError(name, [*problems, *missing])


def _row_problems(row: sources.Row, column: str, first: sources.Row) -> Iterator[str]:
    for needed in first.values:
        if needed not in row.values:
            yield sources.missing_column(row, needed)
    for extra in sorted(set(row.values) - set(first.values)):
        yield f"{row.where}: has a column {extra!r} that {first.where} has not"
    for reserved in _RESERVED_COLUMNS:
        if reserved in row.values and reserved != column:
            yield f"{row.where}: column {reserved!r} would hide the rollout's own; rename it"
    if column not in row.values:
        if column not in first.values:
            yield sources.missing_column(row, column)
        return
    prompt = row.values[column]
    if not isinstance(prompt, str):
        found = list(formats.message_problems(prompt, f"{row.where}: column {column!r}"))
        yield from found
        if not found and prompt[-1]["role"] == "assistant":
            yield (
                f"{row.where}: column {column!r} ends with the assistant's message, the answer "
                "that a policy is to find; leave it out of the prompt"
            )
    elif not prompt:
        yield f"{row.where}: column {column!r} is empty"


def _fits(
    length: int,
    where: str,
    settings: PromptDataConfig,
    account: report.DataReport,
    problems: list[str],
) -> bool:
    """Count the prompt and return true, or note why it is not used."""
    limit = settings.max_prompt_length
    if limit is None or length <= limit:
        account.rows += 1
        account.tokens += length
        account.longest = max(account.longest, length)
        return True
    if settings.too_long == "error":
        problems.append(
            f"{where}: the prompt has {length} tokens, max_prompt_length is {limit}; raise it, or "
            "set too_long to 'filter'"
        )
    else:
        account.drop(where, f"prompt longer than {limit} tokens")
    return False


def _rate_problems(row: sources.Row, settings: PromptDataConfig) -> Iterator[str]:
    column = settings.solve_rate_column
    if column is None:
        return
    if column not in row.values:
        yield sources.missing_column(row, column)
        return
    rate = row.values[column]
    is_number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if not is_number or not 0.0 <= rate <= 1.0:
        yield f"{row.where}: column {column!r} must be a share from 0 to 1, found {rate!r}"


def _is_in_range(row: sources.Row, settings: PromptDataConfig, account: report.DataReport) -> bool:
    """Return whether the prompt is neither too hard nor too easy; count it if it is."""
    if settings.solve_rate_column is None:
        return True
    rate = row.values[settings.solve_rate_column]
    if rate < settings.min_solve_rate:
        account.drop(row.where, f"solve rate below {settings.min_solve_rate}")
    elif rate > settings.max_solve_rate:
        account.drop(row.where, f"solve rate above {settings.max_solve_rate}")
    else:
        return True
    return False


def _prompt_of(
    prompt: str | list[dict[str, Any]], system_prompt: str | None
) -> str | Sequence[Mapping[str, Any]]:
    """Return text as it is, and messages as templates should see them, the system's first."""
    if isinstance(prompt, str):
        if system_prompt is None:
            return prompt
        prompt = [{"role": "user", "content": prompt}]
    turns = messages_lib.for_template(prompt)
    if system_prompt is None:
        return turns
    if turns[0]["role"] == "system":
        raise ValueError("the prompt has a system message of its own; unset system_prompt")
    return [{"role": "system", "content": system_prompt}, *turns]


def _with_prompts_first(values: Mapping[str, Any], column: str, prompt: Any) -> dict[str, Any]:
    return {PROMPTS: prompt} | {k: v for k, v in values.items() if k != column}
