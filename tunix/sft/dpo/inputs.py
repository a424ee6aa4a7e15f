"""Batches of pairs that users make themselves: strings, or token ids with masks."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import numpy as np

from tunix.data import batching, tokenize
from tunix.data.preference import preference_batching, preference_formats, preference_tokens

_LENGTHS = batching.length_buckets(1 << 20)
_RECORD = ("prompts", "chosen_responses", "rejected_responses")


@flax.struct.dataclass
class DataInput:
    """A batch as text, taken as it stands: apply a chat template before."""

    prompts: list[str]
    chosen_responses: list[str]
    rejected_responses: list[str]


@flax.struct.dataclass
class TrainingInput:
    """A batch as token ids; masks are True (1) on real tokens, wherever the padding is."""

    prompt_ids: jax.Array | np.ndarray
    """``[B, P]``."""
    prompt_mask: jax.Array | np.ndarray
    chosen_ids: jax.Array | np.ndarray
    """``[B, C]``, with the token that ends the answer."""
    chosen_mask: jax.Array | np.ndarray
    rejected_ids: jax.Array | np.ndarray
    rejected_mask: jax.Array | np.ndarray


def pairs_of_strings(
    batch: DataInput,
    tokenizer: tokenize.Tokenizer,
    *,
    max_prompt_length: int | None,
    max_response_length: int | None,
) -> list[preference_tokens.TokenizedPair]:
    """Return the tokens of a batch of strings; EOS ends every answer.

    Raises:
        ValueError: If the lists differ in length, or a text is empty or too long; lists all.
    """
    columns = [batch.prompts, batch.chosen_responses, batch.rejected_responses]
    if len(sizes := {len(column) for column in columns}) != 1:
        raise ValueError(f"the lists of a DataInput must have one length, found {sorted(sizes)}")
    found, problems = [], []
    for i, texts in enumerate(zip(*columns, strict=True)):
        if empty := [name for name, text in zip(_RECORD, texts, strict=True) if not text]:
            problems.append(f"entry {i}: {' and '.join(empty)} is empty")
            continue
        pair = preference_tokens.tokenize_pair(preference_formats.Pair(*texts), tokenizer)
        longest = max(len(answer.tokens) for answer in pair.answers)
        for what, length, name, limit in (
            ("the prompt", len(pair.prompt), "max_prompt_length", max_prompt_length),
            ("an answer", longest, "max_response_length", max_response_length),
        ):
            if limit is not None and length > limit:
                problems.append(f"entry {i}: {what} has {length} tokens, {name} is {limit}")
        found.append(pair)
    if problems:
        raise ValueError(
            f"cannot use a batch of strings: {'; '.join(problems)}. Raise the limits, or prepare "
            "the data with tunix.data.preference.preference_data, which can drop or truncate"
        )
    return found


def pairs_of_ids(batch: TrainingInput) -> list[preference_tokens.TokenizedPair | None]:
    """Return the pairs of a batch of token ids, ``None`` for rows that are all padding.

    Raises:
        ValueError: If an array and its mask differ in shape, or a row lacks a part.
    """
    names = ("prompt", "chosen", "rejected")
    parts = {}
    for name in names:
        ids, mask = (np.asarray(getattr(batch, f"{name}_{kind}")) for kind in ("ids", "mask"))
        if ids.shape != mask.shape or ids.ndim != 2:
            raise ValueError(
                f"{name}_ids {ids.shape} and {name}_mask {mask.shape} must have one shape [B, T]"
            )
        parts[name] = [row[m].astype(np.int32) for row, m in zip(ids, mask != 0, strict=True)]
    found: list[preference_tokens.TokenizedPair | None] = []
    for i, (prompt, chosen, rejected) in enumerate(zip(*parts.values(), strict=True)):
        lengths = [len(prompt), len(chosen), len(rejected)]
        if any(lengths) and not all(lengths):
            raise ValueError(
                f"row {i}: prompt, chosen and rejected have {lengths} tokens; every part of a "
                "pair needs one, and a row of padding has none"
            )
        chosen, rejected = (
            preference_tokens.Answer(x, np.ones(len(x), bool)) for x in (chosen, rejected)
        )
        pair = preference_tokens.TokenizedPair(prompt, chosen, rejected)
        found.append(pair if all(lengths) else None)
    return found


def pair_batch(
    pairs: Sequence[preference_tokens.TokenizedPair | None], *, with_last: bool = False
) -> preference_batching.PairBatch:
    """Return one row per pair, an empty one for ``None``, of one of a few lengths."""
    sizes = [preference_batching.pair_size(p, with_last=with_last) for p in pairs if p is not None]
    return preference_batching.collate_pairs(
        [[] if pair is None else [pair] for pair in pairs],
        num_rows=len(pairs),
        length=batching.bucket_for(max(sizes, default=1), _LENGTHS),
        with_last=with_last,
    )


def process_dpo_record(
    record: Mapping[str, str | Sequence[str]],
    tokenizer: tokenize.Tokenizer,
    max_prompt_length: int,
    max_response_length: int,
) -> TrainingInput:
    """Return records as token ids: prompts padded on the left, answers on the right.

    Args:
        record: ``prompts``, ``chosen_responses`` and ``rejected_responses``, each a text or a list.
        tokenizer: A ``TokenizerAdapter``.
        max_prompt_length: Width of the prompts.
        max_response_length: Width of the answers, with the EOS that ends each.

    Raises:
        ValueError: If a text is empty or longer than its width.
    """
    columns: list[Any] = [record[name] for name in _RECORD]
    texts = [[column] if isinstance(column, str) else list(column) for column in columns]
    pairs = pairs_of_strings(
        DataInput(*texts),
        tokenizer,
        max_prompt_length=max_prompt_length,
        max_response_length=max_response_length,
    )
    prompts = _padded([pair.prompt for pair in pairs], max_prompt_length, tokenizer, left=True)
    chosen, rejected = (
        _padded([pair.answers[i].tokens for pair in pairs], max_response_length, tokenizer)
        for i in (0, 1)
    )
    return TrainingInput(*prompts, *chosen, *rejected)


def _padded(
    rows: Sequence[np.ndarray], width: int, tokenizer: tokenize.Tokenizer, *, left: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    ids = np.full((len(rows), width), tokenizer.pad_id(), np.int32)
    mask = np.zeros(ids.shape, bool)
    for i, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, span], mask[i, span] = row, True
    return ids, mask
