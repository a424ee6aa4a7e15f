"""Turns rows into training examples one by one, and keeps account of every one of them."""

import dataclasses

from tunix.data import errors, fingerprint, formats, report, sft_config, sources, tokenize
from tunix.data import translation as translation_lib


class ExampleReader:
    """Reads rows of one format; the first row that has one decides which, or the settings do."""

    def __init__(
        self,
        tokenizer: tokenize.Tokenizer,
        settings: sft_config.SftDataConfig,
        account: report.DataReport,
    ):
        """Read with ``tokenizer`` under ``settings``, and count in ``account``."""
        self._tokenizer, self._settings, self._account = tokenizer, settings, account
        self._format: str | None = None

    def read(self, row: sources.Row, problems: list[str]) -> tokenize.TokenizedExample | None:
        """Return an example, or ``None`` if the row is left out or adds to ``problems``.

        Raises:
            DataError: If the settings name a format that there is not.
        """
        settings, checksum = self._settings, fingerprint.of_row(row.values)
        if settings.translation is not None:
            pair = translation_lib.as_row(row, settings.translation)
            if isinstance(pair, str):
                problems.append(pair)
                return None
            row = pair
        if self._format is None:
            try:
                self._format = formats.resolve_format(row, settings.format)
            except errors.DataError as error:
                if settings.format != "auto":
                    raise
                problems += error.problems
                return None
        found: list[str] = []
        parsed = formats.parse_row(row, self._format, found)
        problems += found
        if found:
            return None
        where = f"{row.where}: {formats.columns_of(self._format)}"
        try:
            example = tokenize.tokenize(parsed, self._tokenizer, train_on=settings.train_on)
        except ValueError as error:
            problems.append(f"{where}: {error}")
            return None
        example = dataclasses.replace(example, checksum=checksum)
        kept = self._fit(example, row.where, where, problems)
        if kept is not None and tokenize.is_plain(parsed, self._tokenizer):
            self._account.plain_rows += 1
        return kept

    def _fit(
        self, example: tokenize.TokenizedExample, row: str, where: str, problems: list[str]
    ) -> tokenize.TokenizedExample | None:
        """Return what is trained of ``example``; otherwise note why nothing is."""
        settings, account = self._settings, self._account
        length, limit = len(example.tokens), settings.max_target_length
        was_trainable = example.trained_tokens > 0
        is_cut = length > limit and was_trainable
        if is_cut and settings.too_long == "error":
            problems.append(
                f"{where}: has {length} tokens, max_target_length is {limit}; raise it, or set "
                "too_long to 'drop', 'keep_start' or 'keep_end'"
            )
            return None
        if is_cut and settings.too_long == "drop":
            account.drop(row, f"longer than {limit} tokens")
            return None
        if is_cut:
            example = self._cut(example)
        if example.trained_tokens == 0:
            reason = f"what is left of it in {limit} tokens has" if was_trainable else "it has"
            if settings.untrainable == "error":
                problems.append(
                    f"{where}: {reason} no token to train (nothing the assistant wrote); remove "
                    "the row, or set untrainable to 'drop'"
                )
            else:
                account.drop(row, "no token to train")
            return None
        if is_cut:
            account.truncated.append(row)
        account.keep(row, example.tokens, example.loss_weights, self._tokenizer.eos_ids())
        return example

    def _cut(self, example: tokenize.TokenizedExample) -> tokenize.TokenizedExample:
        limit = self._settings.max_target_length
        if self._settings.too_long == "keep_start":
            return example.first(limit)
        prefix = self._tokenizer.prefix_ids()
        has_prefix = example.tokens[: len(prefix)].tolist() == prefix
        return example.last(limit, keep=len(prefix) if has_prefix else 0)
