"""``tunix report``: one HTML page about a run, to look at without a network."""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from tunix.cli import console, errors
from tunix.cli.report import report_page
from tunix.utils import json_lines

_OUT = console.OUT


def main(argv: Sequence[str]) -> int:
    """Write the report that ``argv`` asks for; ``argv[0]`` is the name of the program."""
    options = _parser(argv[0]).parse_args(argv[1:])
    run = pathlib.Path(options.run).expanduser()
    target = pathlib.Path(options.output).expanduser() if options.output else run / "report.html"
    page = make_page(run, max_rows=options.rows)
    target.write_text(page, encoding="utf-8")
    _OUT.print(f"report     {target}")
    return 0


def make_page(run: pathlib.Path, *, max_rows: int) -> str:
    """Return the report of a run directory as HTML.

    Args:
        run: The directory; only ``metrics.jsonl`` must be there.
        max_rows: Completions in the table, the last ones.

    Raises:
        FileNotFoundError: If it is no run directory.
        ValueError: If one of its files is not what a run writes; names lines and what to do.
    """
    if not (run / "metrics.jsonl").is_file():
        if (run / "config.yaml").is_file():
            raise FileNotFoundError(
                f"{run}: no step of this run has been logged yet; look again after the first one"
            )
        raise FileNotFoundError(
            f"{run}: no metrics.jsonl there; expected the directory of a run, the one it printed"
        )
    return report_page.render(
        title=run.resolve().name,
        metrics=json_lines.read(run / "metrics.jsonl"),
        completions=json_lines.read(run / "completions.jsonl", report_page.COMPLETION),
        alarms=json_lines.read(run / "alarms.jsonl", report_page.ALARM),
        summary=_summary(run / "summary.json"),
        config=_text(run / "config.yaml"),
        max_rows=max_rows,
    )


def _summary(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path) or "{}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error}); delete it") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected an object, found {type(found).__name__}; delete it")
    return found


def _text(path: pathlib.Path) -> str:
    """Return what is in a file; nothing if it does not exist."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program, description="Write one HTML page about a run: curves, completions, alarms."
    )
    parser.add_argument("run", help="directory of the run")
    parser.add_argument("-o", "--output", help="file to write; report.html in the directory")
    parser.add_argument(
        "--rows", type=_positive, default=1000, help="completions in the table; default 1000"
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv))
