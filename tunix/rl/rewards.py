"""Reward functions: run them together, check what they return, add up what they say.

A reward function is ``fn(prompts, completions, **columns) -> list[float]``: one
number per completion. ``columns`` are the columns of the data row, repeated for
every completion of its prompt, plus ``finish_reasons`` (``"stop"`` if the reply
ended by itself, ``"length"`` if it was cut off). A function without ``**kwargs``
gets only the columns it names.

Nothing here knows about tokens or models.
"""

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from jaxtyping import Float

from tunix.utils import config as config_lib

RewardFn = Callable[..., Sequence[float]]

SHOWN_CHARACTERS = 200
SHOWN_PROBLEMS = 5


class RewardError(ValueError):
    """One or more reward functions failed; every problem names its function and sample."""

    def __init__(self, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        """Return one paragraph per problem."""
        return "reward functions failed:" + "".join(f"\n  - {p}" for p in self.problems)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardResult:
    """What every function said about every completion, and the weighted sum."""

    total: Float[np.ndarray, " B"]
    per_function: Mapping[str, Float[np.ndarray, " B"]]
    """Unweighted scores by function name, in the order the functions were given."""


class RewardManager:
    """Runs reward functions concurrently and adds up their scores.

    Args:
        reward_fns: One function or several; see the module for their form.
        weights: One factor per function; all 1 if not given.

    Raises:
        ConfigError: If there is no function, or not one finite weight for each.
    """

    def __init__(
        self,
        reward_fns: RewardFn | Sequence[RewardFn],
        weights: Sequence[float] | None = None,
    ):
        fns = list(reward_fns) if isinstance(reward_fns, Sequence) else [reward_fns]
        weights = [1.0] * len(fns) if weights is None else list(weights)
        problems = []
        if not fns:
            problems.append("reward_fns is empty; give at least one reward function")
        problems += [f"{fn!r} is not callable" for fn in fns if not callable(fn)]
        if len(weights) != len(fns):
            problems.append(f"reward_weights has {len(weights)} values for {len(fns)} functions")
        problems += [f"reward_weights must be finite, got {w}" for w in weights if not _finite(w)]
        if problems:
            raise config_lib.ConfigError("rewards", problems)
        self._fns = dict(zip(_unique_names(fns), fns, strict=True))
        self._weights = weights

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the functions, as in metrics and logs."""
        return tuple(self._fns)

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise if a function names an argument that the data does not have.

        Raises:
            RewardError: Lists every function and argument.
        """
        problems = []
        for name, fn in self._fns.items():
            for wanted in _required_columns(fn):
                if wanted not in columns:
                    problems.append(
                        f"{name} needs the column {wanted!r}; there are {sorted(columns)}"
                        f"{config_lib.did_you_mean(wanted, columns)}"
                    )
        if problems:
            raise RewardError(problems)

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> RewardResult:
        """Return every function's scores for all completions.

        Args:
            prompts: Text of the prompt of every completion.
            completions: Text of every completion.
            columns: Further values by name, one per completion.

        Raises:
            RewardError: If a function raises, or returns anything but one finite
                number per completion.
        """
        self.check_columns(list(columns))
        prompts, completions = list(prompts), list(completions)
        with futures.ThreadPoolExecutor(max_workers=len(self._fns)) as pool:
            running = {
                name: pool.submit(_call, fn, prompts, completions, columns)
                for name, fn in self._fns.items()
            }
        problems, scores, causes = [], {}, []
        for name, future in running.items():
            if (error := future.exception()) is not None:
                if not isinstance(error, Exception):
                    raise error
                causes.append(error)
                where = _find_fault(self._fns[name], prompts, completions, columns)
                problems.append(f"{name} raised {type(error).__name__}: {error}{where}")
                continue
            found = _problems_of(name, future.result(), prompts, completions)
            problems += found
            if not found:
                scores[name] = np.asarray([float(value) for value in future.result()])
        if problems:
            raise RewardError(problems) from (causes[0] if causes else None)
        total = np.zeros(len(completions))
        for weight, values in zip(self._weights, scores.values(), strict=True):
            total = total + weight * values
        return RewardResult(total=total, per_function=scores)


def _call(
    fn: RewardFn, prompts: list[str], completions: list[str], columns: Mapping[str, Sequence[Any]]
) -> Sequence[float]:
    """Call ``fn`` with everything it can take: all with ``**kwargs``, else what it names."""
    given = {**columns, "prompts": prompts, "completions": completions}
    parameters = inspect.signature(fn).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return fn(**given)
    return fn(**{name: value for name, value in given.items() if name in parameters})


def _required_columns(fn: RewardFn) -> list[str]:
    return [
        name
        for name, p in inspect.signature(fn).parameters.items()
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and name not in ("prompts", "completions")
    ]


def _find_fault(
    fn: RewardFn, prompts: list[str], completions: list[str], columns: Mapping[str, Sequence[Any]]
) -> str:
    """Return which sample makes ``fn`` raise, by trying them one at a time."""
    for i in range(len(completions)):
        one = {name: [values[i]] for name, values in columns.items()}
        try:
            _call(fn, [prompts[i]], [completions[i]], one)
        except Exception:  # whatever a user's function raises is the fault looked for
            return f" (first at {_sample(i, prompts, completions)})"
    return " (on the whole batch; on no sample alone)"


def _problems_of(
    name: str, values: object, prompts: list[str], completions: list[str]
) -> list[str]:
    """Return what is wrong with the value of a reward function."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        return [f"{name} must return a list of numbers, got {type(values).__name__}"]
    values = list(values)
    if len(values) != len(completions):
        return [f"{name} returned {len(values)} rewards for {len(completions)} completions"]
    faults = [i for i, value in enumerate(values) if not _finite(value)]
    problems = [
        f"{name} returned {values[i]!r} where a finite number is expected, "
        f"at {_sample(i, prompts, completions)}"
        for i in faults[:SHOWN_PROBLEMS]
    ]
    if len(faults) > SHOWN_PROBLEMS:
        problems.append(f"{name}: {len(faults) - SHOWN_PROBLEMS} more samples like these")
    return problems


def _finite(value: object) -> bool:
    """Return whether ``value`` is one finite real number; NumPy and JAX scalars count."""
    array = np.asarray(value)
    return array.shape == () and array.dtype.kind in "biuf" and bool(np.isfinite(array))


def _sample(i: int, prompts: list[str], completions: list[str]) -> str:
    return f"sample {i}: prompt {shorten(prompts[i])!r}, completion {shorten(completions[i])!r}"


def shorten(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """Return ``text``, with its middle left out if it is longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    half = (limit - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def _unique_names(fns: Sequence[RewardFn]) -> list[str]:
    """Return a name per function; a repeated name gets a number."""
    names: list[str] = []
    for fn in fns:
        name, count = _name(fn), 1
        unique = name
        while unique in names:
            count += 1
            unique = f"{name}_{count}"
        names.append(unique)
    return names


def _name(fn: RewardFn) -> str:
    """Return what to call a function, a bound method, a partial or a callable object."""
    if isinstance(fn, functools.partial):
        return _name(fn.func)
    if isinstance(fn, (types.FunctionType, types.MethodType, types.BuiltinFunctionType, type)):
        return fn.__name__
    return type(fn).__name__
