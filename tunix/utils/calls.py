"""Whether functions of users can be called as they will be, and what to write where not."""

import functools
import inspect
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tunix.utils import score_functions


def fault(fn: object, by_place: Sequence[str], by_name: Iterable[str] = ()) -> str | None:
    """Return why ``fn`` cannot be called with these arguments, as a sentence, or ``None``.

    Args:
        fn: A function, method, class or callable object; one whose signature Python does not
            know passes.
        by_place: What the arguments that are given by their place are called here.
        by_name: Names of the others.
    """
    if not callable(fn):
        return f"{fn!r:.80} is of type {type(fn).__name__}, not a function"
    by_name = list(by_name)
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # of some functions written in C
        return None
    try:
        signature.bind(*by_place, **dict.fromkeys(by_name))
    except TypeError as error:
        name = score_functions.name_of(fn)
        passed = ", ".join([*by_place, *(f"{key}=..." for key in by_name)])
        takes = ", ".join([*by_place, *(["*", *by_name] if by_name else [])])
        rest = ", with **kwargs in place of what it does not read" if by_name else ""
        return (
            f"{name}{_place(fn)} takes {_plain(signature)}, and is called as {name}({passed}): "
            f"{error}; write def {name}({takes}){rest}"
        )
    return None


def require(role: str, fn: object, by_place: Sequence[str], by_name: Iterable[str] = ()) -> None:
    """Raise if ``fn`` cannot be called with these arguments.

    Args:
        role: What the function is for, the beginning of the message.
        fn: As for :func:`fault`, also the other two.
        by_place: See there.
        by_name: See there.

    Raises:
        TypeError: Says what it takes, what it is called with and what to write.
    """
    if (problem := fault(fn, by_place, by_name)) is not None:
        raise TypeError(f"{role}: {problem}")


def require_methods(role: str, given: object, base: type) -> None:
    """Raise if ``given`` lacks an abstract method of ``base``, or has it with other parameters.

    Raises:
        TypeError: Lists all of them.
    """
    problems = []
    for name in sorted(getattr(base, "__abstractmethods__", ())):
        parameters = [*inspect.signature(getattr(base, name)).parameters][1:]
        if not hasattr(given, name):
            problems.append(f"has no method {name}({', '.join(parameters)})")
        elif problem := fault(getattr(given, name), parameters):
            problems.append(problem)
    if problems:
        raise TypeError(f"{role} {type(given).__name__}: " + "; ".join(problems))


def _plain(signature: inspect.Signature) -> str:
    """Return parameters without their annotations."""
    empty = inspect.Parameter.empty
    plain = [p.replace(annotation=empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def _place(fn: Callable[..., Any]) -> str:
    """Return where a function was written, in brackets, if that is known."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    found = inspect.unwrap(fn)
    if not inspect.isroutine(found) and not isinstance(found, type):
        found = type(found).__call__
    try:
        file, (_, line) = inspect.getsourcefile(found), inspect.getsourcelines(found)
    except (TypeError, OSError):  # written in C, or typed into an interpreter
        return ""
    return f" ({pathlib.Path(file).name}:{line})" if file else ""
