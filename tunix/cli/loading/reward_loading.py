"""Reward functions from Python files: which are used, and why others are not."""

import dataclasses
import functools
import inspect
import sys
import types
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tunix.cli.loading import python_files
from tunix.rl.collecting import prompt_batch
from tunix.rl.scoring import reward_settings, rewards
from tunix.utils import config as config_lib
from tunix.utils import error_text, score_functions

RewardFn = rewards.RewardFn

_LEADING_ARGUMENTS = (reward_settings.BATCH_ARGUMENTS, reward_settings.SAMPLE_ARGUMENTS)
_TEXTS = {name for names in _LEADING_ARGUMENTS for name in names}
_REPLY = {"completions", "completion", *prompt_batch.ROLLOUT_COLUMNS} - {prompt_batch.PROMPT_IDS}
"""Arguments that say something of a reply: a function with none of them cannot judge one."""

_SHOWN = 5
"""Functions that are named where several are not used for the same reason."""


def load_reward_functions(
    paths: Sequence[str],
    *,
    columns: Collection[str] | None = None,
    key: str = "reward_functions",
) -> list[RewardFn]:
    """Return the reward functions of Python files, in the order they are written.

    A file's reward functions are those it lists in ``__all__``, which may also be
    callable objects and :class:`~tunix.rl.scoring.rewards.Reward`, or else every function
    *defined* there whose name does not start with an underscore, that takes something of
    a reply, and whose arguments all have a value. One that begins with ``prompts,
    completions`` or ``prompt, completion``, or takes ``completions`` and ``**kwargs``, is a
    reward beyond doubt: if it needs a column that there is not, that is an error of the run.
    Metrics call them what the file does.

    Args:
        paths: The files.
        columns: What functions can be given besides prompts and completions; anything if
            ``None``.
        key: The setting that names the files, for messages.

    Raises:
        ConfigError: a file is missing, fails or holds no reward function, or
            ``__all__`` lists something that is none.
    """
    problems: list[str] = []
    contents = _read(paths, columns, key)
    for path, content in contents.items():
        if content.problems:
            problems += content.problems
        elif not content.functions:
            others = "".join(f"; {name}: {why}" for name, why in content.unused.items())
            problems.append(f"{path} defines no function (prompts, completions, ...){others}")
    if problems:
        raise config_lib.ConfigError(key, problems)
    return [function for content in contents.values() for function in content.functions]


def unused_functions(
    paths: Sequence[str],
    *,
    columns: Collection[str] | None = None,
    key: str = "reward_functions",
) -> list[str]:
    """Return what functions of these files are not used as rewards, and why: a line per reason."""
    told: list[str] = []
    for path, content in _read(paths, columns, key).items():
        by_reason: dict[str, list[str]] = {}
        for name, why in content.unused.items():
            by_reason.setdefault(why, []).append(name)
        for why, names in by_reason.items():
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            verb = "is not used" if len(names) == 1 else "are not used, of each"
            told.append(f"{path}: {', '.join(names[:_SHOWN])}{more} {verb}: {why}")
    return told


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Content:
    """What is in a file."""

    functions: Sequence[RewardFn]
    unused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Why a function is not used, by its name."""
    problems: Sequence[str] = ()


def _read(paths: Sequence[str], columns: Collection[str] | None, key: str) -> dict[str, _Content]:
    """Return the contents of files by path."""
    contents: dict[str, _Content] = {}
    for path in paths:
        try:
            (module,) = python_files.load([path], key=key)
        except config_lib.ConfigError as error:
            contents[path] = _Content(functions=[], problems=error.problems)
            continue
        listed = vars(module).get("__all__")
        contents[path] = (
            _found(module, path, columns) if listed is None else _listed(module, path, listed)
        )
    return contents


def _listed(module: types.ModuleType, path: str, names: Sequence[str]) -> _Content:
    if isinstance(names, str):
        return _Content(functions=[], problems=[f"{path}: __all__ is a text; write [{names!r}]"])
    problems = [
        f"{path}: __all__ lists {name!r}, which is no function (prompts, completions, ...)"
        for name in names
        if not _is_settings(value := vars(module).get(name)) and not _takes_texts(value)
    ]
    functions = [] if problems else [_named(name, vars(module)[name]) for name in names]
    return _Content(functions=functions, problems=problems)


def _found(module: types.ModuleType, path: str, columns: Collection[str] | None) -> _Content:
    public = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and (callable(value) or _is_settings(value))
    }
    if settings := [name for name, value in public.items() if _is_settings(value)]:
        problem = f"{path} makes {settings} but has no __all__; list there what is to be used"
        return _Content(functions=[], problems=[problem])
    used: dict[str, RewardFn] = {}
    unused: dict[str, str] = {}
    for name, value in public.items():
        if any(value is one for one in used.values()):  # a second name of the same
            continue
        try:
            why = _why_not(value, module, columns)
        except Exception as error:  # whatever its class does when it is looked at
            why = f"it cannot be looked at ({error_text.describe(error)})"
        if why is None:
            used[name] = value
        elif why:
            unused[name] = why
    functions = [_named(name, value) for name, value in used.items()]
    return _Content(functions=functions, unused=unused)


def _named(name: str, value: Any) -> RewardFn:
    """Return a reward that is called what its file calls it, unless its settings say otherwise.

    A lambda, a partial, an object and what a decorator returns have no names of their own that
    would tell them apart.
    """
    if _is_settings(value):
        is_named = isinstance(value.fn, types.FunctionType) and value.fn.__name__ != "<lambda>"
        return value if value.name or is_named else dataclasses.replace(value, name=name)
    is_called_so = score_functions.name_of(value) == name
    return value if is_called_so else reward_settings.Reward(fn=value, name=name)


def _why_not(value: Any, module: types.ModuleType, columns: Collection[str] | None) -> str | None:
    """Return why something callable is not used; an empty text if nobody would expect it to be."""
    own = getattr(value, "__module__", None) == module.__name__
    if not inspect.isroutine(value) and not hasattr(value, "__wrapped__"):
        is_tool = type(value) is not functools.partial and _is_standard(type(value).__module__)
        judges = not isinstance(value, type) and not is_tool and _takes_texts(value)
        return "it is an object, not a function; list it in __all__ to use it" if judges else ""
    if not own:
        origin = str(getattr(value, "__module__", None) or "elsewhere")
        if _is_standard(origin):
            return ""
        use = "; list it in __all__ to use it" if _takes_texts(value) else ""
        return f"it is imported from {origin}{use}"
    try:
        parameters = inspect.signature(value).parameters
    except (TypeError, ValueError):
        return "its signature cannot be read"
    if not _REPLY & set(parameters) and not score_functions.takes_everything(value):
        return "it takes nothing of a reply (prompts, completions, ...)"
    if by_place := score_functions.positional_only(value):
        return f"it takes {by_place[0]!r} by its place, and arguments are given by name"
    if _is_beyond_doubt(value) or columns is None:
        return None
    if all(set(names) & set(parameters) for names in _LEADING_ARGUMENTS):
        return "it takes both whole batches and single replies"
    given = _TEXTS | set(columns)
    missing = [name for name in score_functions.required(value) if name not in given]
    if not missing:
        return None
    hint = config_lib.did_you_mean(missing[0], sorted(given))
    return f"it needs {missing[0]!r}, of which neither data nor rollout has any{hint}"


def _is_beyond_doubt(function: Any) -> bool:
    """Return whether a function can be nothing but a reward: our form, or that of TRL."""
    parameters = tuple(inspect.signature(function).parameters)
    is_of_trl = "completions" in parameters and score_functions.takes_everything(function)
    return is_of_trl or parameters[:2] in _LEADING_ARGUMENTS


def _is_standard(module: str) -> bool:
    """Return whether a module is of the standard library, ``typing`` for example."""
    return module.partition(".")[0] in sys.stdlib_module_names


def _takes_texts(value: Any) -> bool:
    if not callable(value) or isinstance(value, type):
        return False
    try:
        parameters = inspect.signature(value).parameters
    except (TypeError, ValueError):
        return False
    return bool((_TEXTS | _REPLY) & set(parameters)) or score_functions.takes_everything(value)


def _is_settings(value: object) -> bool:
    # Not ``isinstance``, which asks the object itself, and that may be anything.
    return issubclass(type(value), reward_settings.Reward)
