"""From rows to tokenized preferences, with an account of every row.

Tokenizing happens once, in memory, before training, as in :mod:`tunix.data.sft_data`.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from tunix.data import errors, report, sources, tokenize
from tunix.data.preference import (
    preference_config,
    preference_fit,
    preference_formats,
    preference_tokens,
)

PreferenceDataConfig = preference_config.PreferenceDataConfig
PreferenceDataset = preference_fit.PreferenceDataset


def read_pairs(
    source: sources.Source,
    tokenizer: tokenize.Tokenizer,
    settings: PreferenceDataConfig,
    *,
    columns: Mapping[str, str] | None = None,
) -> PreferenceDataset[preference_tokens.TokenizedPair]:
    """Read and tokenize pairs: ``chosen``, ``rejected`` and perhaps ``prompt``.

    Raises:
        DataError: Lists everything wrong with the source and its rows.
    """
    problems: list[str] = []
    rows = sources.read_rows(source, columns=columns, problems=problems)
    name = sources.name_of(source)
    return tokenize_pairs(rows, tokenizer, settings, name=name, problems=problems)


def tokenize_pairs(
    rows: Sequence[sources.Row],
    tokenizer: tokenize.Tokenizer,
    settings: PreferenceDataConfig,
    *,
    name: str = "the data set",
    problems: Sequence[str] = (),
) -> PreferenceDataset[preference_tokens.TokenizedPair]:
    """Return the pairs of ``rows`` under the policies of ``settings``.

    ``problems`` are what ``read_rows`` has noted; they are raised with what is wrong with ``rows``.

    Raises:
        DataError: Lists every row that cannot be used.
    """
    account = report.DataReport(source=name)
    fit = preference_fit.Fit(settings, account, tokenizer.eos_ids(), problems)
    for row in rows:
        pair = preference_formats.parse_pair(row, fit.problems)
        if pair is None:
            continue
        found = fit.tokenized(row, lambda p=pair: preference_tokens.tokenize_pair(p, tokenizer))
        if found is None:
            continue
        if preference_tokens.is_same(found.chosen, found.rejected):
            fit.refuse_identical(row)
        else:
            fit.keep(found, row, is_plain=_is_plain(pair.prompt, tokenizer))
    return fit.dataset()


def read_ratings(
    source: sources.Source,
    tokenizer: tokenize.Tokenizer,
    settings: PreferenceDataConfig,
    *,
    columns: Mapping[str, str] | None = None,
) -> PreferenceDataset[preference_tokens.TokenizedRating]:
    """Read and tokenize rated answers: ``prompt``, ``completion`` and ``label``.

    Each gets as foreign answer that of the next row with another prompt, whatever the later order
    or batch, so that estimates made of them do not depend on how the data is split.

    Raises:
        DataError: Lists everything wrong with the source and its rows.
    """
    problems: list[str] = []
    rows = sources.read_rows(source, columns=columns, problems=problems)
    name = sources.name_of(source)
    return tokenize_ratings(rows, tokenizer, settings, name=name, problems=problems)


def tokenize_ratings(
    rows: Sequence[sources.Row],
    tokenizer: tokenize.Tokenizer,
    settings: PreferenceDataConfig,
    *,
    name: str = "the data set",
    problems: Sequence[str] = (),
) -> PreferenceDataset[preference_tokens.TokenizedRating]:
    """Return the rated answers of ``rows``, see :func:`read_ratings`; otherwise as the pairs.

    Raises:
        DataError: Lists every row that cannot be used.
    """
    account = report.DataReport(source=name)
    fit = preference_fit.Fit(settings, account, tokenizer.eos_ids(), problems)
    for row in rows:
        rating = preference_formats.parse_rating(row, fit.problems)
        if rating is None:
            continue
        found = fit.tokenized(row, lambda x=rating: preference_tokens.tokenize_rating(x, tokenizer))
        if found is not None:
            fit.keep(found, row, is_plain=_is_plain(rating.prompt, tokenizer))
    dataset = fit.dataset()
    return dataclasses.replace(dataset, examples=with_foreign_answers(dataset.examples, name=name))


def _is_plain(prompt: str | preference_formats.Messages, tokenizer: tokenize.Tokenizer) -> bool:
    return isinstance(prompt, str) and tokenizer.lacks_chat_template(prompt)


def with_foreign_answers(
    ratings: Sequence[preference_tokens.TokenizedRating], *, name: str = "the data set"
) -> list[preference_tokens.TokenizedRating]:
    """Return the ratings, each with the answer of the next one that has another prompt.

    Raises:
        DataError: If all prompts are the same.
    """
    keys = [rating.prompt.tobytes() for rating in ratings]
    if len(set(keys)) < 2:
        raise errors.DataError(
            name, ["all rows have the same prompt; KTO needs answers to other prompts as well"]
        )
    foreign, following = [0] * len(keys), 0
    # Backwards, twice around: the next row with another prompt is the next row, or the next one's.
    for i in reversed(range(2 * len(keys))):
        here, after = i % len(keys), (i + 1) % len(keys)
        following = after if keys[after] != keys[here] else following
        foreign[here] = following
    return [
        dataclasses.replace(rating, foreign=ratings[other].answer)
        for rating, other in zip(ratings, foreign, strict=True)
    ]
