"""Which preference examples are used, and why others are not."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

from tunix.data import errors, fingerprint, report, sources
from tunix.data.preference import preference_config, preference_tokens

ExampleT = TypeVar("ExampleT", preference_tokens.TokenizedPair, preference_tokens.TokenizedRating)


@dataclasses.dataclass(frozen=True)
class PreferenceDataset(Generic[ExampleT]):
    """Tokenized examples and what became of every row."""

    examples: Sequence[ExampleT]
    report: report.DataReport


class Fit(Generic[ExampleT]):
    """Collects the examples that can be used, and why others cannot."""

    def __init__(
        self,
        settings: preference_config.PreferenceDataConfig,
        account: report.DataReport,
        eos_ids: tuple[int, ...],
        problems: Sequence[str] = (),
    ):
        """Collect under ``settings``; ``problems`` are known before a row is read."""
        self._settings, self._account, self._eos_ids = settings, account, eos_ids
        self._kept: list[ExampleT] = []
        self.problems = list(problems)

    def tokenized(self, row: sources.Row, tokenize_row: Callable[[], ExampleT]) -> ExampleT | None:
        """Return a row's example, cut to the limits, or note why there is none."""
        try:
            example = tokenize_row()
        except ValueError as error:
            self.problems.append(f"{row.where}: {error}")
            return None
        limits = (self._settings.max_prompt_length, self._settings.max_response_length)
        longest = max(len(answer.tokens) for answer in example.answers)
        over = [
            f"the {part} has {found} tokens, {name} is {limit}"
            for part, found, name, limit in (
                ("prompt", len(example.prompt), "max_prompt_length", limits[0]),
                ("longest answer", longest, "max_response_length", limits[1]),
            )
            if found > limit
        ]
        if not over:
            return example
        if self._settings.too_long == "error":
            self.problems.append(
                f"{row.where}: {'; '.join(over)}; raise it, or set too_long to 'drop' or 'truncate'"
            )
            return None
        if self._settings.too_long == "drop":
            self._account.drop(row.where, "longer than max_prompt_length or max_response_length")
            return None
        self._account.truncated.append(row.where)
        return truncated(example, *limits)

    def refuse_identical(self, row: sources.Row) -> None:
        """Note a pair of equal answers."""
        if self._settings.identical == "drop":
            self._account.drop(row.where, "both answers are the same")
        else:
            self.problems.append(
                f"{row.where}: 'chosen' and 'rejected' are the same tokens, so there is nothing to "
                "prefer; remove the row, or set identical to 'drop'"
            )

    def keep(self, example: ExampleT, row: sources.Row, *, is_plain: bool) -> None:
        """Count an example; ``is_plain`` if it is text without the chat template."""
        account, answers = self._account, example.answers
        size = len(example.prompt) + sum(len(answer.tokens) for answer in answers)
        account.rows += 1
        account.plain_rows += is_plain
        account.tokens += size
        account.trained_tokens = (account.trained_tokens or 0) + sum(a.length for a in answers)
        account.longest = max(account.longest, size)
        if not np.isin(answers[0].tokens[answers[0].mask], self._eos_ids).any():
            account.never_stop.append(row.where)
        checksum = fingerprint.of_row(row.values)
        self._kept.append(dataclasses.replace(example, checksum=checksum))

    def dataset(self) -> PreferenceDataset[ExampleT]:
        """Return what was kept.

        Raises:
            DataError: If anything was wrong, or nothing is left.
        """
        if not self._kept and not self.problems:
            self.problems.append(f"no row is left to train on; {self._account}")
        if self.problems:
            raise errors.DataError(self._account.source, self.problems)
        return PreferenceDataset(self._kept, self._account)


def truncated(example: ExampleT, max_prompt_length: int, max_response_length: int) -> ExampleT:
    """Return the end of the prompt with the beginnings of the answers."""
    prompt = example.prompt[-max_prompt_length:]
    if isinstance(example, preference_tokens.TokenizedPair):
        return dataclasses.replace(
            example,
            prompt=prompt,
            chosen=example.chosen.truncated(max_response_length),
            rejected=example.rejected.truncated(max_response_length),
        )
    return dataclasses.replace(
        example, prompt=prompt, answer=example.answer.truncated(max_response_length)
    )
