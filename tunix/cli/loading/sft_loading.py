"""The data of ``tunix sft``: from the settings to batches and an account of every row."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tunix.cli.running import training_run
from tunix.cli.schemas import sft_schema
from tunix.data import errors, mixing, questions, report, sft_data, sft_stream, sources
from tunix.tokenizers import tokenizer_adapter


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftData:
    """What a run trains and evaluates on."""

    train_ds: Iterable[Any]
    eval_ds: Iterable[Any] | None
    questions: questions.Questions | None
    """Held-out prompts to reply to, if that is asked for."""
    reports: Sequence[report.DataReport]
    """What became of every row."""


def load_data(run: sft_schema.SftRun, tokenizer: tokenizer_adapter.TokenizerAdapter) -> SftData:
    """Return the run's data.

    Raises:
        DataError: lists everything wrong with the files and their rows.
    """
    faults = errors.Faults()
    held_out = {f"{path} (held out)": _read(path, run) for path in run.eval_data_paths}
    train_ds: Any = None
    reports: list[report.DataReport] = []
    parts: list[_Part] = []
    if run.data_config.streaming_window is not None:
        with faults.noted():
            train_ds = sft_stream.SftStream(
                list(run.data_paths),
                tokenizer,
                run.data,
                window=run.data_config.streaming_window,
                columns=run.data_config.columns or None,
                shard=run.data_config.shard,
            )
            reports.append(train_ds.report)
    else:
        train = {}
        for path in run.data_paths:
            with faults.noted():
                train[path], rest = _split(_read(path, run), run, path)
                if rest.rows:
                    held_out[f"{path} (held out)"] = rest
        parts = _tokenized(train, tokenizer, run.data, faults)
        reports += [account for _, account in parts]
    found = _tokenized(held_out, tokenizer, run.eval_data, faults)
    faults.check()
    if train_ds is None:
        train_ds = _batches(parts, tokenizer, run, run.data, _order(run, parts))
    asked, asked_reports = _questions(held_out, tokenizer, run)
    return SftData(
        train_ds=train_ds,
        eval_ds=_batches(found, tokenizer, run, run.eval_data, None) if found else None,
        questions=asked,
        reports=[*reports, *(account for _, account in found), *asked_reports],
    )


def longest(run: sft_schema.SftRun, data: SftData) -> int:
    """Return the tokens of the longest text; of a stream, the most that there may be."""
    if run.data_config.streaming_window is not None:
        return run.data.max_target_length
    return max(account.longest for account in data.reports)


_Part = tuple[sft_data.Rows, report.DataReport]


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Rows that could be read, and what is wrong with the others."""

    rows: Sequence[sources.Row]
    problems: Sequence[str] = ()


def _read(path: str, run: sft_schema.SftRun) -> _Rows:
    problems: list[str] = []
    rows = sources.read_rows(path, columns=run.data_config.columns or None, problems=problems)
    return _Rows(rows, problems)


def _split(read: _Rows, run: sft_schema.SftRun, path: str) -> tuple[_Rows, _Rows]:
    """Return the rows to train on, with all problems, and those that are held out."""
    if read.problems and len(read.rows) < 2:  # how many there will be is not known yet
        return read, _Rows([])
    rows, rest = training_run.split_rows(read.rows, run.train_fraction, name=path)
    return _Rows(rows, read.problems), _Rows(rest)


def _tokenized(
    read: Mapping[str, _Rows],
    tokenizer: tokenizer_adapter.TokenizerAdapter,
    settings: sft_data.SftDataConfig,
    faults: errors.Faults,
) -> list[_Part]:
    parts = []
    for name, found in read.items():
        with faults.noted():
            part = sft_data.tokenize_rows(
                found.rows, tokenizer, settings, name=name, problems=found.problems
            )
            parts.append(part)
    return parts


def _questions(
    held_out: Mapping[str, _Rows],
    tokenizer: tokenizer_adapter.TokenizerAdapter,
    run: sft_schema.SftRun,
) -> tuple[questions.Questions | None, list[report.DataReport]]:
    """Return the prompts of held-out rows, if replies to them are asked for."""
    options = run.evaluation.generation
    if options is None:
        return None, []
    rows = [row for part in held_out.values() for row in part.rows]
    asked, account = questions.from_rows(
        rows, tokenizer, run.eval_data, limit=options.num_prompts, name="prompts to reply to"
    )
    return asked, [account]


def _order(run: sft_schema.SftRun, parts: list[_Part]) -> mixing.Order | None:
    mixture = run.data_config.mixture
    if mixture is None:
        return None
    sizes = [len(examples) for examples, _ in parts]
    return mixing.mixed_order(
        sizes, mixture.weights, shuffle_seed=run.data.shuffle_seed, stop=mixture.stop
    )


def _batches(
    parts: list[_Part],
    tokenizer: tokenizer_adapter.TokenizerAdapter,
    run: sft_schema.SftRun,
    settings: sft_data.SftDataConfig,
    order: mixing.Order | None,
) -> Iterable[Any]:
    examples = [example for found, _ in parts for example in found]
    shard = run.data_config.shard
    return sft_data.make_batches(examples, tokenizer, settings, order=order, shard=shard)
