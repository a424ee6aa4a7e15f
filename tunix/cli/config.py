r"""Reading a run's settings: YAML files, environment and command line, merged.

Later sources win, key by key and at any depth: the base file, then
``override_config_file=FILE``, then environment variables ``T_<KEY>`` (a
top-level key in capitals, its value parsed as YAML), then ``key.sub=value``
arguments. This module does not know which keys exist.

A value may refer to another (``${seed}``) or to the environment (``${oc.env:TOKEN}``). What is
printed and saved keeps the reference: it may stand for a secret, and ``\${`` stays a text.
"""

import dataclasses
import io
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import omegaconf
import yaml

from tunix.cli.schemas import yaml_faults
from tunix.utils import config as config_lib
from tunix.utils import reference_names

BASE_CONFIG = pathlib.Path(__file__).with_name("base_config.yaml")
"""Meant by the literal file name ``base_config.yaml``."""

_OVERRIDE = "override_config_file="


_FROM_OUTSIDE = re.compile(r"\$\{\s*\w[\w.]*\s*:")
"""A reference that asks a resolver instead of another key."""
_VARIABLE = re.compile(r"\$\{\s*oc\.env\s*:\s*(\w+)")
_SHORTEST_SECRET = 4

_Path = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Merged settings and where they came from."""

    values: dict[str, Any]
    source: str
    references: Mapping[_Path, str]
    """What was written in place of each value that refers to something."""
    hidden: Mapping[str, str]
    """Texts that messages must not say, and the references that stand for them."""

    def with_references(self, plain: Any) -> Any:
        """Return ``plain``, settings in which every reference has been put back in place."""
        for path, reference in self.references.items():
            place = plain
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = reference
        return plain


def load(arguments: Sequence[str], environ: Mapping[str, str], keys: Iterable[str]) -> Settings:
    """Return the settings that ``BASE.yaml [override_config_file=FILE] key=value ...`` asks for.

    Args:
        arguments: The command line after the command's own name.
        environ: The environment, searched for ``T_<KEY>``.
        keys: Top-level keys; only they can be set by the environment.

    Raises:
        ConfigError: no base file, an argument that is not ``key=value``, YAML
            that does not parse, or an interpolation that leads nowhere.
        FileNotFoundError: a file does not exist.
    """
    base, assignments = _split(arguments)
    override_files = [a.removeprefix(_OVERRIDE) for a in assignments if a.startswith(_OVERRIDE)]
    layers = [read_yaml(path) for path in [base, *override_files]]
    layers.append(_from_environment(environ, keys))
    layers.append(_parse([a for a in assignments if not a.startswith(_OVERRIDE)], "command line"))
    source = ", ".join([base, *override_files])
    try:
        merged = omegaconf.OmegaConf.merge(*layers)
        values = omegaconf.OmegaConf.to_container(merged, resolve=True)
    except omegaconf.errors.OmegaConfBaseException as error:
        raise config_lib.ConfigError(source, [_reference_problem(error)]) from error
    assert isinstance(values, dict)
    references = dict(_references(omegaconf.OmegaConf.to_container(merged)))
    hidden = dict(_hidden(values, references, environ))
    return Settings({str(key): v for key, v in values.items()}, source, references, hidden)


def read_saved(path: pathlib.Path, *keys: str) -> dict[str, Any]:
    """Return some blocks of the settings that a run has saved, with their references followed.

    Raises:
        ConfigError: If the file is none, or a reference leads nowhere.
    """
    saved, found = read_yaml(str(path)), {}
    try:
        for key in keys:
            value = omegaconf.OmegaConf.select(saved, key)
            is_block = omegaconf.OmegaConf.is_config(value)
            container = omegaconf.OmegaConf.to_container
            found[key] = container(value, resolve=True) if is_block else value
    except omegaconf.errors.OmegaConfBaseException as error:
        raise config_lib.ConfigError(str(path), [_reference_problem(error)]) from error
    return found


def _reference_problem(error: Exception) -> str:
    """Return why a reference cannot be followed, and how to write the text that looks like one."""
    where = getattr(error, "full_key", None)
    reason = str(error).partition("\n")[0]
    return (
        f"{where + ': ' if where else ''}{reason}; where ${{ is part of a text, such as a path, "
        r"write \${ (in single quotes, for the shell)"
    )


def _references(written: Any, path: _Path = ()) -> Iterator[tuple[_Path, str]]:
    """Yield the place and the text of every value that refers to something, or looks like it."""
    if isinstance(written, str):
        if "${" in written:
            yield path, written
    elif isinstance(written, Mapping | list):
        items = written.items() if isinstance(written, Mapping) else enumerate(written)
        for key, value in items:
            yield from _references(value, (*path, key))


def _hidden(
    values: Any, references: Mapping[_Path, str], environ: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    for path, reference in references.items():
        if not _FROM_OUTSIDE.search(reference):
            continue
        value = values
        for key in path:
            value = value[key]
        found = {str(value): reference}
        for name in _VARIABLE.findall(reference):
            found[environ.get(name, "")] = f"${{oc.env:{name}}}"
        yield from ((t, r) for t, r in found.items() if len(t) >= _SHORTEST_SECRET)


def read_yaml(path: str) -> omegaconf.DictConfig:
    """Return one YAML file; ``base_config.yaml`` is the one shipped with the package."""
    file = BASE_CONFIG if path == BASE_CONFIG.name else pathlib.Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"config file {path} does not exist (looked in {file.absolute()})")
    if (size := file.stat().st_size) > yaml_faults.MAX_BYTES:
        problem = f"has {size:,} bytes, more than settings take; is it another file?"
        raise config_lib.ConfigError(str(path), [problem])
    text = ""
    try:
        text = file.read_text("utf-8-sig")
        if problems := list(yaml_faults.size_problems(text)):
            raise config_lib.ConfigError(str(path), problems)
        loaded = omegaconf.OmegaConf.load(io.StringIO(text))
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 at byte {error.start + 1}; save the file as UTF-8"
        raise config_lib.ConfigError(str(path), [problem]) from error
    except yaml.YAMLError as error:
        raise config_lib.ConfigError(
            str(path), [f"{file.name}, {yaml_faults.problem(error, text)}"]
        ) from error
    except omegaconf.errors.OmegaConfBaseException as error:
        raise config_lib.ConfigError(str(path), [" ".join(str(error).split())]) from error
    if not isinstance(loaded, omegaconf.DictConfig):
        raise config_lib.ConfigError(str(path), ["the file must hold keys and values, not a list"])
    return loaded


def _split(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the base file and the ``key=value`` assignments, or report what is neither."""
    problems = []
    if not arguments or "=" in arguments[0]:
        problems.append(
            "the first argument must be a YAML file, such as examples/quickstart/larger_number.yaml"
        )
    assignments = [argument.removeprefix("--") for argument in arguments[1:]]
    problems += [f"{a!r} is not of the form key=value" for a in assignments if "=" not in a]
    if problems:
        raise config_lib.ConfigError("command line", problems)
    return arguments[0], assignments


def _parse(assignments: Sequence[str], source: str) -> omegaconf.DictConfig:
    """Return the settings of ``key.sub=value`` lines; values are YAML."""
    parsed = omegaconf.OmegaConf.create({})
    problems = []
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        try:
            if too_large := list(yaml_faults.size_problems(value)):
                problems += [f"{key}: {problem}" for problem in too_large]
                continue
            parsed.merge_with(omegaconf.OmegaConf.from_dotlist([assignment]))
        except yaml.YAMLError as error:
            problems.append(yaml_faults.value_problem(error, assignment))
        except omegaconf.errors.OmegaConfBaseException as error:
            problems.append(_reference_problem(error))
    if problems:
        raise config_lib.ConfigError(source, problems)
    return parsed


def _from_environment(environ: Mapping[str, str], keys: Iterable[str]) -> omegaconf.DictConfig:
    assignments = [
        f"{key}={environ[variable]}" for key in keys if (variable := f"T_{key.upper()}") in environ
    ]
    return _parse(assignments, "environment")


__getattr__ = reference_names.hints(__name__)
