"""Reading a run's settings: YAML files, environment and command line, merged.

Later sources win, key by key and at any depth: the base file, then
``override_config_file=FILE``, then environment variables ``T_<KEY>`` (a
top-level key in capitals, its value parsed as YAML), then ``key.sub=value``
arguments. This module does not know which keys exist.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import omegaconf
import yaml

from tunix.utils import config as config_lib

BASE_CONFIG = pathlib.Path(__file__).with_name("base_config.yaml")
"""Meant by the literal file name ``base_config.yaml``."""

_OVERRIDE = "override_config_file="


@dataclasses.dataclass(frozen=True)
class Settings:
    """Merged settings and where they came from."""

    values: dict[str, Any]
    source: str


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
        raise config_lib.ConfigError(source, [str(error).partition("\n")[0]]) from error
    assert isinstance(values, dict)
    return Settings({str(key): value for key, value in values.items()}, source)


def read_yaml(path: str) -> omegaconf.DictConfig:
    """Return one YAML file; ``base_config.yaml`` is the one shipped with the package."""
    file = BASE_CONFIG if path == BASE_CONFIG.name else pathlib.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"config file {path} does not exist (looked in {file.absolute()})")
    try:
        loaded = omegaconf.OmegaConf.load(file)
    except yaml.YAMLError as error:
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
        try:
            parsed.merge_with(omegaconf.OmegaConf.from_dotlist([assignment]))
        except (yaml.YAMLError, omegaconf.errors.OmegaConfBaseException) as error:
            problems.append(f"{assignment}: {' '.join(str(error).split())}")
    if problems:
        raise config_lib.ConfigError(source, problems)
    return parsed


def _from_environment(environ: Mapping[str, str], keys: Iterable[str]) -> omegaconf.DictConfig:
    assignments = [
        f"{key}={environ[variable]}" for key in keys if (variable := f"T_{key.upper()}") in environ
    ]
    return _parse(assignments, "environment")
