"""Functions of users that score replies: what they are called, what they take and return."""

import copy
import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def takes_everything(fn: Callable[..., Any]) -> bool:
    """Return whether a function has ``**kwargs``."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(fn).parameters.values())


def taken(fn: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what to call a function with: all with ``**kwargs``, else what it names."""
    if takes_everything(fn):
        return dict(given)
    parameters = inspect.signature(fn).parameters
    return {name: value for name, value in given.items() if name in parameters}


def own_copy(value: Any) -> Any:
    """Return a copy that a function may change without anyone else noticing.

    What cannot be copied, an open file say, is shared as the user made it.
    """
    try:
        return copy.deepcopy(value)
    except Exception:  # whatever the value's class raises
        return value


def required(fn: Callable[..., Any]) -> list[str]:
    """Return the named arguments that a function cannot do without."""
    return [
        name
        for name, p in inspect.signature(fn).parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]


def positional_only(fn: Callable[..., Any]) -> list[str]:
    """Return the arguments without a default that cannot be given by name."""
    return [
        name
        for name, p in inspect.signature(fn).parameters.items()
        if p.kind is p.POSITIONAL_ONLY and p.default is p.empty
    ]


def is_score(value: object) -> bool:
    """Return whether ``value`` is one finite real number; NumPy and JAX scalars count, bools not.

    ``True`` as a score is more often a forgotten ``float(...)`` of the wrong thing than meant.
    """
    try:
        array = np.asarray(value)
        if array.dtype.kind == "V":  # bfloat16 and its like, which NumPy takes for raw bytes
            array = array.astype(np.float32)
    except Exception:  # a tensor that is still part of a graph, say: whatever its class raises
        return False
    return array.shape == () and array.dtype.kind in "iuf" and bool(np.isfinite(array))


def name_of(fn: object) -> str:
    """Return what to call a function, a bound method, a partial or a callable object."""
    if isinstance(fn, functools.partial):
        return name_of(fn.func)
    if isinstance(fn, (types.FunctionType, types.MethodType, types.BuiltinFunctionType, type)):
        return fn.__name__
    if hasattr(fn, "__wrapped__"):  # a function that caches another, say
        return name_of(fn.__wrapped__)  # pyright: ignore[reportAttributeAccessIssue]
    return type(fn).__name__
