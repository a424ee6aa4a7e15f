"""What all training commands share: the command line and its settings."""

import argparse
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import yaml

from tunix.cli import config, errors
from tunix.cli.schemas import reference_keys, schema, structure
from tunix.utils import config as config_lib

RunT = TypeVar("RunT", bound=schema.RunOptions)


@dataclasses.dataclass(frozen=True)
class Request(Generic[RunT]):
    """What the user asked for."""

    run: RunT
    resolved_yaml: str
    """Every setting of the run, defaults included; references stand for what they refer to."""
    only_print: bool


def parse(
    argv: Sequence[str],
    run_class: type[RunT],
    description: str,
    *,
    choose: Callable[[Mapping[str, Any]], type[RunT]] | None = None,
    prepare: Callable[[Mapping[str, Any]], None] | None = None,
) -> Request[RunT]:
    """Return the run that ``argv`` describes; ``argv[0]`` is the name of the program.

    Args:
        argv: The command line.
        run_class: What the settings may say.
        description: The first line of the help.
        choose: Returns a subclass with the same keys for the settings as they were read.
        prepare: Called with these settings before they are checked.

    Raises:
        ConfigError: lists everything wrong with the settings.
        FileNotFoundError: a config file does not exist.
    """
    parser = argparse.ArgumentParser(
        prog=argv[0],
        usage=f"{argv[0]} BASE.yaml [override_config_file=FILE.yaml] [key.sub=value ...]",
        description=description,
        epilog=_keys_of(run_class),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print every setting of the run and stop"
    )
    parser.add_argument("settings", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args(argv[1:])
    keys = [f.name for f in dataclasses.fields(run_class)]
    settings = config.load(options.settings, os.environ, keys)
    if prepare is not None:
        prepare(settings.values)
    chosen = run_class if choose is None else choose(settings.values)
    errors.hide(settings.hidden)
    try:
        run = structure.structure(
            chosen, settings.values, notes=reference_keys.notes_for(chosen), source=settings.source
        )
    except config_lib.ConfigError as error:
        problems = [errors.without_hidden(problem) for problem in error.problems]
        raise config_lib.ConfigError(error.subject, problems) from None
    plain = settings.with_references(structure.to_plain(run))
    resolved = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return Request(run=run, resolved_yaml=resolved, only_print=options.print_config)


def _keys_of(run_class: type[schema.RunOptions]) -> str:
    names = ", ".join(f.name for f in dataclasses.fields(run_class))
    return f"keys: {names}\n(--print-config shows them in full; see the README for examples)"
