"""``tunix checkpoints``: lists, verifies and prunes the checkpoints of a run."""

import argparse
import datetime
import pathlib
import shutil
import sys
from collections.abc import Sequence

import rich.console
import rich.table

from tunix.cli import errors
from tunix.sft import checkpoint_integrity as integrity

_OUT = rich.console.Console(highlight=False, soft_wrap=True)
_COMMANDS = {
    "ls": "list them: step, size, when written",
    "verify": "read every file and array again; exit status 1 if anything is wrong",
    "prune": "delete all but the latest ones, and what killed processes left behind",
}


def main(argv: Sequence[str]) -> int:
    """Run one of the three commands; ``argv[0]`` is the name of the program."""
    options = _parser(argv[0]).parse_args(argv[1:])
    root = find_root(pathlib.Path(options.directory))
    if options.command == "ls":
        return _list(root)
    if options.command == "verify":
        return _verify(root)
    return _prune(root, options.keep, dry_run=options.dry_run)


def find_root(directory: pathlib.Path) -> pathlib.Path:
    """Return the directory of checkpoints that a user means: it, or one in a run directory.

    Raises:
        FileNotFoundError: If it does not exist or holds no checkpoint.
    """
    root = directory / "checkpoints" if (directory / "checkpoints").is_dir() else directory
    if not root.is_dir() or not _steps(root):
        raise FileNotFoundError(
            f"{root}: no checkpoint there; expected a run directory or its checkpoints directory"
        )
    return root


def _steps(root: pathlib.Path) -> list[pathlib.Path]:
    """Return the complete checkpoints, in order of their steps."""
    complete = [path for path in root.iterdir() if integrity.is_complete(path)]
    return sorted(complete, key=lambda path: (len(path.name), path.name))


def _list(root: pathlib.Path) -> int:
    table = rich.table.Table("step", "size", "written", "checksums", "parts")
    for path in _steps(root):
        written = datetime.datetime.fromtimestamp(path.stat().st_mtime)
        parts = sorted(part.name for part in path.iterdir() if part.is_dir())
        table.add_row(
            path.name,
            _size(integrity.num_bytes(path)),
            written.strftime("%Y-%m-%d %H:%M:%S"),
            "yes" if integrity.is_sealed(path) else "no",
            ", ".join(parts),
        )
    _OUT.print(table)
    return 0


def _verify(root: pathlib.Path) -> int:
    is_sound = True
    for path in _steps(root):
        problems = list(integrity.array_problems(path))
        how = "arrays read"
        if integrity.is_sealed(path):
            problems = [*integrity.file_problems(path), *problems]
            how = "checksums match, arrays read"
        else:
            how += "; it has no checksums (its process was killed before they were written)"
        _OUT.print(f"step {path.name}  {'NOT SOUND' if problems else f'sound: {how}'}")
        for problem in problems:
            _OUT.print(f"  - {problem}")
        is_sound = is_sound and not problems
    return 0 if is_sound else 1


def _prune(root: pathlib.Path, keep: int, *, dry_run: bool) -> int:
    steps = _steps(root)
    leftovers = [path for path in root.iterdir() if ".orbax-checkpoint-tmp" in path.name]
    doomed = [*steps[: max(0, len(steps) - keep)], *leftovers]
    freed = sum(integrity.num_bytes(path) for path in doomed)
    for path in doomed:
        _OUT.print(f"{'would delete' if dry_run else 'deleting'} {path.name}")
        if not dry_run:
            shutil.rmtree(path)
    kept = ", ".join(path.name for path in steps if path not in doomed)
    verb = "would free" if dry_run else "freed"
    _OUT.print(f"{verb} {_size(freed)}; kept {kept}")
    return 0


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program, description="List, verify and prune the checkpoints of a run."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("directory", help="run directory, or its checkpoints directory")
        if name == "prune":
            command.add_argument("--keep", type=_positive, default=1, help="how many; default 1")
            command.add_argument("--dry-run", action="store_true", help="delete nothing")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1: the latest is where a run continues")
    return value


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv))
