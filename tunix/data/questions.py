"""Held-out rows as questions: what a model is asked, and the reply that it should give.

The reply is the row's last one; everything before it is the prompt. Prompts are never cut.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tunix.data import errors, formats, report, sft_config, sources
from tunix.data import translation as translation_lib

REFERENCE = "reference"
"""Column of the replies that rows hold."""

_TEXTS = ("prompt", "prompts", "completion", "completions")
"""What scores call the texts themselves."""


class PromptTokenizer(Protocol):
    """What questions need from a tokenizer; ``TokenizerAdapter`` has it."""

    def encode_prompt(self, prompt: str | Sequence[Mapping[str, Any]], **kwargs: Any) -> list[int]:
        """Return what a sampler should continue."""
        ...

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], **kwargs: Any
    ) -> str | list[int]:
        """Return a conversation as text, up to where the assistant replies."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions:
    """Prompts as ids and as text, and what belongs to each."""

    token_ids: Sequence[Sequence[int]]
    texts: Sequence[str]
    columns: Mapping[str, Sequence[Any]]
    """:data:`REFERENCE`, and the columns that all rows have."""


def from_rows(
    rows: Sequence[sources.Row],
    tokenizer: PromptTokenizer,
    settings: sft_config.SftDataConfig,
    *,
    limit: int | None = None,
    name: str = "questions",
) -> tuple[Questions, report.DataReport]:
    """Return the questions that rows ask, and what became of the rows.

    Args:
        rows: From ``sources.read_rows``.
        tokenizer: A ``TokenizerAdapter``.
        settings: The format of the rows. A prompt of more than ``max_target_length`` tokens is
            left out, and so is a row without a reply where ``untrainable`` is ``drop``.
        limit: How many rows to take at most, evenly spaced; ``None`` takes all.
        name: What the report calls the data.

    Raises:
        DataError: Lists every row that asks nothing, and says so if no question is left.
    """
    account = report.DataReport(source=name, trained_tokens=None)
    count = len(rows) if limit is None else min(limit, len(rows))
    problems: list[str] = []
    kept: list[tuple[sources.Row, _Question]] = []
    for row in (rows[i * len(rows) // count] for i in range(count)):
        question = _read(row, tokenizer, settings, account, problems)
        if question is not None:
            kept.append((row, question))
    if not kept and not problems:
        problems.append(f"no question is left; {account}")
    if problems:
        raise errors.DataError(name, problems)
    shared = [key for key in kept[0][0].values if all(key in row.values for row, _ in kept)]
    columns = {key: [row.values[key] for row, _ in kept] for key in shared if key not in _TEXTS}
    found = Questions(
        token_ids=[question.token_ids for _, question in kept],
        texts=[question.text for _, question in kept],
        columns={REFERENCE: [question.reference for _, question in kept], **columns},
    )
    return found, account


@dataclasses.dataclass(frozen=True)
class _Question:
    token_ids: list[int]
    text: str
    reference: str


def _read(
    row: sources.Row,
    tokenizer: PromptTokenizer,
    settings: sft_config.SftDataConfig,
    account: report.DataReport,
    problems: list[str],
) -> _Question | None:
    """Return the question of a row, or ``None`` if it is left out or adds to ``problems``."""
    if REFERENCE in row.values:
        problems.append(f"{row.where}: column {REFERENCE!r} would hide the row's reply; rename it")
        return None
    if settings.translation is not None:
        pair = translation_lib.as_row(row, settings.translation)
        if isinstance(pair, str):
            problems.append(pair)
            return None
        row = pair
    found: list[str] = []
    try:
        example = formats.parse_row(row, formats.resolve_format(row, settings.format), found)
    except errors.DataError as error:
        if settings.format != "auto":
            raise
        example, found = formats.Text(""), list(error.problems)
    if found:
        problems += found
        return None
    try:
        question = _ask(example, tokenizer)
    except ValueError as error:
        question = str(error)
    if isinstance(question, str):
        if isinstance(example, formats.Conversation) and settings.untrainable == "drop":
            account.drop(row.where, question)
        else:
            problems.append(f"{row.where}: {question}")
        return None
    limit, length = settings.max_target_length, len(question.token_ids)
    if length > limit:
        account.drop(row.where, f"prompt longer than {limit} tokens")
        return None
    account.rows += 1
    account.tokens += length
    account.longest = max(account.longest, length)
    return question


def _ask(example: formats.Example, tokenizer: PromptTokenizer) -> _Question | str:
    """Return the question of an example, or why there is none."""
    match example:
        case formats.Text():
            return "a text has no prompt to reply to; use prompts with completions, or messages"
        case formats.PromptCompletion(prompt, completion):
            return _Question(tokenizer.encode_prompt(prompt), prompt, completion)
    messages, weights = example.messages, example.weights
    replies = [
        i
        for i in range(example.train_from, len(messages))
        if messages[i]["role"] == "assistant" and (weights is None or weights[i] > 0)
    ]
    if not replies or replies[-1] == 0:
        return "nothing in the conversation has a reply of the assistant"
    prompt, reference = messages[: replies[-1]], messages[replies[-1]].get("content")
    if not isinstance(reference, str) or not reference.strip():
        return "the last reply of the conversation is no text, which replies are compared with"
    options: dict[str, Any] = {} if example.tools is None else {"tools": example.tools}
    text = str(tokenizer.apply_chat_template(prompt, **options))
    return _Question(tokenizer.encode_prompt(prompt, **options), text, reference)
