"""What a run made of its rows, kept for whatever is done with its model later.

A model that was trained on text without its chat template should be asked without it, and one
whose template writes today's date sees one date in a run, however many days that takes.
"""

import dataclasses
import datetime
import json
import pathlib
from collections.abc import Iterable, Iterator

from flax import nnx

from tunix.cli.loading import build
from tunix.cli.schemas import schema
from tunix.data import report
from tunix.sft import run_directory
from tunix.tokenizers import tokenizer_adapter
from tunix.utils import config as config_lib
from tunix.utils import json_text

FILE = "text.json"


@dataclasses.dataclass(frozen=True)
class RunText:
    """What is known of a run's text."""

    date: datetime.date | None = None
    """What its chat template was told to be today."""
    uses_chat_template: bool = True
    """False where every row was text that lacks the form of the tokenizer's chat template."""


def read(run: pathlib.Path) -> RunText:
    """Return what the run in this directory says of its text; the defaults if it says nothing.

    Raises:
        ConfigError: If its file cannot be read.
    """
    path = run / FILE
    if not path.is_file():
        return RunText()
    try:
        found = json_text.parse(path.read_bytes())
        date = found["date"]
        return RunText(
            date=None if date is None else datetime.date.fromisoformat(date),
            uses_chat_template=bool(found["uses_chat_template"]),
        )
    except (ValueError, TypeError, KeyError) as error:
        problem = f"not what a run writes ({error}); remove the file to go by the defaults"
        raise config_lib.ConfigError(str(path), [problem]) from error


def make_tokenizer(
    options: schema.TokenizerOptions,
    model: nnx.Module,
    model_path: str,
    directory: run_directory.RunDirectory,
) -> tokenizer_adapter.TokenizerAdapter:
    """Return the run's tokenizer, told the date of the settings or of the run's first start."""
    date = read(directory.path).date or datetime.date.today()
    if options.date is not None:
        date = datetime.date.fromisoformat(options.date)
    tokenizer = build.make_tokenizer(options, model, model_path, date=date)
    _write(directory, RunText(date if tokenizer.reads_date else None))
    return tokenizer


def record(
    directory: run_directory.RunDirectory,
    reports: Iterable[report.DataReport],
    *,
    remedy: str = "give lists of messages",
) -> Iterator[str]:
    """Keep whether the rows use the chat template, and yield what to say of their text."""
    kept = list(reports)
    rows, plain = sum(r.rows for r in kept), sum(r.plain_rows for r in kept)
    found = dataclasses.replace(read(directory.path), uses_chat_template=plain < rows)
    _write(directory, found)
    if plain:
        follow = "" if plain < rows else "; tunix generate and tunix export follow the run"
        yield (
            f"note       {plain:,} of {rows:,} rows are text and go to the model as they stand, "
            f"without its chat template{follow}; to use that, {remedy}"
        )
    if found.date is not None:
        yield (
            f"note       the chat template writes today's date into every conversation; for this "
            f"run that is {found.date}, also when it continues (tokenizer_config.date sets another)"
        )


def _write(directory: run_directory.RunDirectory, found: RunText) -> None:
    date = None if found.date is None else found.date.isoformat()
    values = {"date": date, "uses_chat_template": found.uses_chat_template}
    (directory.path / FILE).write_text(json.dumps(values) + "\n", encoding="utf-8")
