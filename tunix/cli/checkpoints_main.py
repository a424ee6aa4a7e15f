"""``tunix checkpoints``: lists, verifies and prunes the checkpoints of a run."""

import argparse
import contextlib
import datetime
import pathlib
import shutil
import sys
from collections.abc import Sequence

import rich.table

from tunix.cli import console, errors
from tunix.rl.cluster import critic_trainer
from tunix.sft import run_lock
from tunix.sft.checkpoints import checkpoint_integrity as integrity

_OUT = console.OUT
_COMMANDS = {
    "ls": "list them: step, size, when written",
    "verify": "read every file and array again; exit status 1 if anything is wrong",
    "prune": "delete all but the latest ones, and what killed processes left behind",
}


def main(argv: Sequence[str]) -> int:
    """Run one of the three commands; ``argv[0]`` is the name of the program."""
    options = _parser(argv[0]).parse_args(argv[1:])
    root = find_root(pathlib.Path(options.directory).expanduser().absolute())
    roots = [root]
    if (beside := critic_trainer.checkpoints_beside(root)).is_dir():
        roots.append(beside)  # a step is complete with both
    if options.command == "prune":
        # What looks like left behind may be what a run is writing.
        with contextlib.ExitStack() as stack:
            for one in [] if options.dry_run else roots:
                stack.enter_context(run_lock.owned(one))
            return _prune(roots, options.keep, dry_run=options.dry_run)
    act = _list if options.command == "ls" else _verify
    codes = []
    for one in roots:
        if len(roots) > 1:
            _OUT.print(one)
        codes.append(act(one))
    return max(codes)


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
    """Return the directories of all steps in their order, of those that are not whole, too."""
    found = [
        path
        for path in root.iterdir()
        if integrity.is_complete(path) or (path.is_dir() and path.name.isdecimal())
    ]
    return sorted(found, key=lambda path: (len(path.name), path.name))


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
            ", ".join(parts) if integrity.is_complete(path) else "INCOMPLETE",
        )
    _OUT.print(table)
    return 0


def _verify(root: pathlib.Path) -> int:
    is_sound = True
    for path in _steps(root):
        problems = list(integrity.problems(path))
        how = "checksums match, arrays read"
        if not integrity.is_sealed(path):
            how = (
                "arrays read; it has no checksums (its process was killed before they were written)"
            )
        _OUT.print(f"step {path.name}  {'NOT SOUND' if problems else f'sound: {how}'}")
        for problem in problems:
            _OUT.print(f"  - {problem}")
        is_sound = is_sound and not problems
    return 0 if is_sound else 1


def _prune(roots: Sequence[pathlib.Path], keep: int, *, dry_run: bool) -> int:
    complete = [path for path in _steps(roots[0]) if integrity.is_complete(path)]
    if not complete:
        raise FileNotFoundError(f"{roots[0]}: no step there is complete; nothing was deleted")
    kept = [path.name for path in complete[-keep:]]
    doomed = [
        path
        for root in roots
        for path in [*_steps(root), *filter(integrity.is_unfinished, root.iterdir())]
        if path.name not in kept
    ]
    freed = sum(integrity.num_bytes(path) for path in doomed)
    for path in doomed:
        shown = path.name if path.parent == roots[0] else path.relative_to(roots[0].parent)
        _OUT.print(f"{'would delete' if dry_run else 'deleting'} {shown}")
        if not dry_run:
            shutil.rmtree(path)
    verb = "would free" if dry_run else "freed"
    _OUT.print(f"{verb} {_size(freed)}; kept {', '.join(kept)}")
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
