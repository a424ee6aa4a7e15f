"""From rows to batches for supervised tuning, with an account of every row.

Tokenizing happens once, in memory, before training: whatever is wrong with a row is found
before the first step, and the report can name it.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tunix.data import (
    batching,
    errors,
    formats,
    iterators,
    packing,
    report,
    sources,
    tokenize,
)
from tunix.utils import config

TOO_LONG_POLICIES = ("error", "drop", "truncate")
UNTRAINABLE_POLICIES = ("error", "drop")
Rows = list[tokenize.TokenizedExample]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftDataConfig(config.Config):
    """How rows become batches."""

    format: str = "auto"
    """``messages``, ``prompt_completion``, ``text``, or ``auto``: by the columns."""

    max_target_length: int = 1024
    """Tokens a row of a batch holds."""

    too_long: Literal["error", "drop", "truncate"] = "error"
    """What happens to a longer example; truncation keeps its beginning."""

    untrainable: Literal["error", "drop"] = "error"
    """What happens to an example without a token to train, perhaps after truncation."""

    batch_size: int = 8
    """Rows per batch."""

    packing: bool = False
    """Whether several examples may share a row; they do not see each other."""

    packing_window: int = 512
    """How many consecutive examples are packed together."""

    pad_to: Literal["bucket", "max"] = "bucket"
    """Pad a batch to the next of a few lengths, or always to ``max_target_length``."""

    shuffle_seed: int | None = 0
    """``None`` keeps the order of the data."""

    num_epochs: int | None = 1
    """``None`` repeats the data for ever."""

    last_batch: Literal["drop", "keep"] = "keep"
    """What happens to a short last batch; kept, it is filled with empty rows."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        choices = {
            "format": ("auto", *formats.FORMATS),
            "too_long": TOO_LONG_POLICIES,
            "untrainable": UNTRAINABLE_POLICIES,
            "pad_to": ("bucket", "max"),
            "last_batch": ("drop", "keep"),
        }
        for name, allowed in choices.items():
            value = vars(self)[name]
            if value not in allowed:
                hint = config.did_you_mean(str(value), allowed)
                yield f"{name} {value!r} is not one of {list(allowed)}{hint}"
        for name, least in {"max_target_length": 2, "batch_size": 1, "packing_window": 1}.items():
            if vars(self)[name] < least:
                yield f"{name} must be at least {least}, got {vars(self)[name]}"
        if self.num_epochs is not None and self.num_epochs < 1:
            yield f"num_epochs must be at least 1 or null, got {self.num_epochs}"
        if self.shuffle_seed is not None and self.shuffle_seed < 0:
            yield f"shuffle_seed must not be negative, got {self.shuffle_seed}"


def tokenize_rows(
    rows: Sequence[sources.Row],
    tokenizer: tokenize.Tokenizer,
    settings: SftDataConfig,
    *,
    name: str = "data",
) -> tuple[Rows, report.DataReport]:
    """Return the examples to train on and a report of all rows.

    Args:
        rows: From ``sources.read_rows``.
        tokenizer: A ``TokenizerAdapter``.
        settings: Format, length and what to do with rows that cannot be used.
        name: What the report calls the data.

    Raises:
        DataError: Lists every row that cannot be used under these settings.
    """
    examples = formats.parse_rows(rows, settings.format)
    account = report.DataReport(source=name)
    kept: Rows = []
    problems: list[str] = []
    for row, example in zip(rows, examples, strict=True):
        try:
            found = tokenize.tokenize(example, tokenizer)
        except ValueError as error:
            problems.append(f"{row.where}: {error}")
            continue
        fitted = _fit(found, row.where, settings, account, problems)
        if fitted is not None:
            kept.append(fitted)
            _count(account, fitted, row.where, tokenizer.eos_ids())
    if not kept and not problems:
        problems.append(f"no row is left to train on; {account}")
    if problems:
        raise errors.DataError(name, problems)
    return kept, account


def make_batches(
    examples: Rows, tokenizer: tokenize.Tokenizer, settings: SftDataConfig
) -> iterators.Batches[batching.Batch]:
    """Return batches of ``examples``; every ``iter()`` of it begins anew and can be resumed."""
    buckets = batching.length_buckets(settings.max_target_length)
    if settings.pad_to == "max" or settings.packing:
        buckets = buckets[-1:]
    lengths = np.asarray([len(example.tokens) for example in examples], np.int64)
    pad_id = tokenizer.pad_id()

    def collate(rows: Sequence[Sequence[tokenize.TokenizedExample]]) -> batching.Batch:
        longest = max(sum(len(example.tokens) for example in row) for row in rows)
        return batching.collate(
            rows,
            num_rows=settings.batch_size,
            length=batching.bucket_for(longest, buckets),
            pad_id=pad_id,
        )

    def pack(order: np.ndarray) -> list[list[int]]:
        return packing.pack_windows(
            order, lengths, capacity=settings.max_target_length, window=settings.packing_window
        )

    return iterators.Batches(
        lambda: iterators.BatchIterator(
            examples,
            settings.batch_size,
            settings.shuffle_seed,
            settings.num_epochs,
            collate=collate,
            last_batch=settings.last_batch,
            group=pack if settings.packing else None,
        )
    )


def load(
    source: str | pathlib.Path | Iterable[Mapping[str, Any]],
    tokenizer: tokenize.Tokenizer,
    settings: SftDataConfig,
    *,
    columns: Mapping[str, str] | None = None,
) -> tuple[iterators.Batches[batching.Batch], report.DataReport]:
    """Read, tokenize and batch ``source``, a JSON lines file or rows.

    Args:
        source: A path, or any iterable of mappings.
        tokenizer: A ``TokenizerAdapter``.
        settings: See :class:`SftDataConfig`.
        columns: New name to name in the data, for columns to rename.

    Raises:
        DataError: Lists everything wrong with the file and its rows.
    """
    rows = sources.read_rows(source, columns=columns)
    name = str(source) if isinstance(source, str | pathlib.Path) else "data"
    examples, account = tokenize_rows(rows, tokenizer, settings, name=name)
    return make_batches(examples, tokenizer, settings), account


def _fit(
    example: tokenize.TokenizedExample,
    where: str,
    settings: SftDataConfig,
    account: report.DataReport,
    problems: list[str],
) -> tokenize.TokenizedExample | None:
    """Return what is trained of ``example``; otherwise note why nothing is."""
    length, limit = len(example.tokens), settings.max_target_length
    was_trainable = example.trained_tokens > 0
    if length > limit and was_trainable:
        if settings.too_long == "error":
            problems.append(
                f"{where}: has {length} tokens, max_target_length is {limit}; raise it, or set "
                "too_long to 'drop' or 'truncate'"
            )
            return None
        if settings.too_long == "drop":
            account.drop(where, f"longer than {limit} tokens")
            return None
        example = example.truncated(limit)
    if example.trained_tokens == 0:
        reason = f"its first {limit} tokens hold" if was_trainable else "it has"
        if settings.untrainable == "error":
            problems.append(
                f"{where}: {reason} no token to train (nothing the assistant wrote); remove the "
                "row, or set untrainable to 'drop'"
            )
        else:
            account.drop(where, "no token to train")
        return None
    if length > limit:
        account.truncated.append(where)
    return example


def _count(
    account: report.DataReport,
    example: tokenize.TokenizedExample,
    where: str,
    eos_ids: tuple[int, ...],
) -> None:
    account.rows += 1
    account.tokens += len(example.tokens)
    account.trained_tokens = (account.trained_tokens or 0) + example.trained_tokens
    account.longest = max(account.longest, len(example.tokens))
    if not np.isin(example.tokens[example.loss_weights > 0], eos_ids).any():
        account.never_stop.append(where)
