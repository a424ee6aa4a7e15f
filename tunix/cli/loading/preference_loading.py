"""The preferences that a run trains and evaluates on, as the settings ask."""

from collections.abc import Sequence

from tunix.cli.running import training_run
from tunix.cli.schemas import preference_schema
from tunix.data import errors, sources
from tunix.data.preference import preference_data, preference_fit
from tunix.tokenizers import tokenizer_adapter

Dataset = preference_fit.PreferenceDataset


def longest(*datasets: Dataset | None) -> int:
    """Return the tokens of the longest prompt with one of its answers."""
    return max(
        len(example.prompt) + max(len(answer.tokens) for answer in example.answers)
        for dataset in datasets
        if dataset is not None
        for example in dataset.examples
    )


def load_data(
    run: preference_schema.PreferenceRun, tokenizer: tokenizer_adapter.TokenizerAdapter
) -> tuple[Dataset, Dataset | None]:
    """Return examples to train and to evaluate on, with what became of every row.

    Raises:
        DataError: lists everything wrong with the files and their rows.
    """
    columns = run.data_config.columns or None
    faults, problems, held_out_problems = errors.Faults(), [], []
    rows = sources.read_rows(run.data_path, columns=columns, problems=problems)
    held_out: Sequence[sources.Row] = []
    held_out_name = run.data_path
    if run.eval_data_path is not None:
        held_out = sources.read_rows(
            run.eval_data_path, columns=columns, problems=held_out_problems
        )
        held_out_name = run.eval_data_path
    elif run.train_fraction < 1.0 and not (problems and len(rows) < 2):
        rows, held_out = training_run.split_rows(rows, run.train_fraction, name=run.data_path)
    read = preference_data.tokenize_ratings if run.is_rated else preference_data.tokenize_pairs
    data = held_out_data = None
    with faults.noted():
        data = read(rows, tokenizer, run.data, name=run.data_path, problems=problems)
    if held_out or held_out_problems:
        name = f"{held_out_name} (held out)"
        with faults.noted():
            held_out_data = read(
                held_out, tokenizer, run.eval_data, name=name, problems=held_out_problems
            )
    faults.check()
    assert data is not None  # else there are faults
    return data, held_out_data
