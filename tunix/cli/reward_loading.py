"""Reward functions from Python files."""

import inspect
import types
from collections.abc import Sequence

from tunix.cli import python_files
from tunix.rl import prompt_batch, reward_settings, rewards
from tunix.utils import config as config_lib
from tunix.utils import score_functions

RewardFn = rewards.RewardFn

_LEADING_ARGUMENTS = (reward_settings.BATCH_ARGUMENTS, reward_settings.SAMPLE_ARGUMENTS)
_TEXTS = {name for names in _LEADING_ARGUMENTS for name in names} | {*prompt_batch.ROLLOUT_COLUMNS}


def load_reward_functions(paths: Sequence[str], *, key: str = "reward_functions") -> list[RewardFn]:
    """Return the reward functions of Python files, in the order they are written.

    A file's reward functions are those it lists in ``__all__``, which may also be
    callable objects and :class:`~tunix.rl.rewards.Reward`, or else every function
    *defined* there whose name does not start with an underscore and whose first
    arguments are ``prompts, completions`` or ``prompt, completion``. Helpers and
    imported functions are therefore never taken for rewards.

    Args:
        paths: The files.
        key: The setting that names them, for messages.

    Raises:
        ConfigError: a file is missing, fails or holds no reward function, or
            ``__all__`` lists something that is none.
    """
    functions: list[RewardFn] = []
    problems: list[str] = []
    for path in paths:
        try:
            (module,) = python_files.load([path], key=key)
        except config_lib.ConfigError as error:
            problems += error.problems
            continue
        found, objections = _functions_of(module, path)
        functions += found
        problems += objections
    if problems:
        raise config_lib.ConfigError(key, problems)
    return functions


def _functions_of(module: types.ModuleType, path: str) -> tuple[list[RewardFn], list[str]]:
    names = vars(module).get("__all__")
    if names is None:
        own = [
            value
            for name, value in vars(module).items()
            if inspect.isfunction(value)
            and value.__module__ == module.__name__
            and not name.startswith("_")
        ]
        found = [function for function in own if _leads_with_texts(function)]
        if settings := [n for n, v in vars(module).items() if _is_settings(v)]:
            return [], [
                f"{path} makes {settings} but has no __all__; list there what is to be used"
            ]
        if not found:
            others = f"; it defines {[f.__name__ for f in own]}" if own else ""
            return [], [f"{path} defines no function (prompts, completions, ...){others}"]
        return list(found), []
    problems = [
        f"{path}: __all__ lists {name!r}, which is no function (prompts, completions, ...)"
        for name in names
        if not _takes_texts(vars(module).get(name))
    ]
    return [vars(module)[name] for name in names] if not problems else [], problems


def _leads_with_texts(function: types.FunctionType) -> bool:
    return tuple(inspect.signature(function).parameters)[:2] in _LEADING_ARGUMENTS


def _takes_texts(value: object) -> bool:
    if _is_settings(value):
        return True
    if not callable(value) or isinstance(value, type):
        return False
    parameters = inspect.signature(value).parameters
    return bool(_TEXTS & set(parameters)) or score_functions.takes_everything(value)


def _is_settings(value: object) -> bool:
    return isinstance(value, reward_settings.Reward)
