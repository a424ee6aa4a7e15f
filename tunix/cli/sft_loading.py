"""The data of ``tunix sft``: from the settings to batches and an account of every row."""

from collections.abc import Iterable
from typing import Any

from tunix.cli import sft_schema
from tunix.data import mixing, report, sft_data, sft_stream, sources
from tunix.generate import tokenizer_adapter


def load_data(
    run: sft_schema.SftRun, tokenizer: tokenizer_adapter.TokenizerAdapter
) -> tuple[Iterable[Any], Iterable[Any] | None, list[report.DataReport]]:
    """Return batches to train and to evaluate on, and what became of every row.

    Raises:
        DataError: lists everything wrong with the files and their rows.
    """
    options = run.data_config
    held_out = [
        sft_data.tokenize_rows(_read(path, run), tokenizer, run.eval_data, name=path)
        for path in run.eval_data_paths
    ]
    if options.streaming_window is not None:
        stream = sft_stream.SftStream(
            list(run.data_paths),
            tokenizer,
            run.data,
            window=options.streaming_window,
            columns=options.columns or None,
        )
        train_ds, reports = stream, [stream.report]
    else:
        parts = []
        for path in run.data_paths:
            rows = _read(path, run)
            cut = max(1, round(len(rows) * run.train_fraction))
            parts.append(sft_data.tokenize_rows(rows[:cut], tokenizer, run.data, name=path))
            if rows[cut:]:
                name = f"{path} (held out)"
                held_out.append(
                    sft_data.tokenize_rows(rows[cut:], tokenizer, run.eval_data, name=name)
                )
        train_ds = _batches(parts, tokenizer, run.data, _order(run, parts))
        reports = [account for _, account in parts]
    eval_ds = _batches(held_out, tokenizer, run.eval_data, None) if held_out else None
    return train_ds, eval_ds, reports + [account for _, account in held_out]


_Part = tuple[sft_data.Rows, report.DataReport]


def _read(path: str, run: sft_schema.SftRun) -> list[sources.Row]:
    return sources.read_rows(path, columns=run.data_config.columns or None)


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
    settings: sft_data.SftDataConfig,
    order: mixing.Order | None,
) -> Iterable[Any]:
    examples = [example for found, _ in parts for example in found]
    return sft_data.make_batches(examples, tokenizer, settings, order=order)
