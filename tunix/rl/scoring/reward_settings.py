"""One reward function and how it is run: where, how many calls at once, how long, what if it fails.

Nothing here runs anything.
"""

import dataclasses
import functools
import inspect
import pickle
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from tunix.utils import config as config_lib
from tunix.utils import error_text, score_functions

RewardFn = Callable[..., Any]
"""For a batch: ``fn(prompts, completions, **columns)`` returns a list, a number or ``None`` per
completion. For one sample: ``fn(prompt, completion, **columns)`` returns a number or ``None``."""

BATCH_ARGUMENTS = ("prompts", "completions")
SAMPLE_ARGUMENTS = ("prompt", "completion")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward(config_lib.Config):
    """A reward function with the settings it is run with; a bare function has the defaults."""

    fn: RewardFn
    """The function; ``async def`` is awaited."""

    name: str | None = None
    """What metrics and logs call it; the function's own name when unset."""

    run_in: Literal["thread", "process"] = "thread"
    """Processes have what threads lack: all cores, an end by force when time is up, and a crash
    that takes nobody along. The function must be found by name in a module, and be quick to
    import; JAX sees only the CPU there."""

    workers: int | None = None
    """Calls at the same time of a function of one sample. When unset 1 in threads, 2 processes,
    32 of an ``async`` function."""

    time_limit: float | None = None
    """Seconds one call may take. A thread that takes longer is left to itself, as nothing can end
    it; a process is killed. A function that reads batches has one call for the whole batch."""

    on_error: Literal["raise"] | float | None = "raise"
    """What a sample gets whose call raises, takes too long or crashes: ``raise`` stops the run,
    ``None`` says that the function does not apply, a number is the score. A wrong value (NaN, a
    list that is too short) always stops it: that is a mistake, not an accident."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        if self.run_in not in ("thread", "process"):
            yield f"run_in must be 'thread' or 'process', got {self.run_in!r}"
        if self.workers is not None and self.workers < 1:
            yield f"workers must be at least 1, got {self.workers}"
        if self.time_limit is not None and not self.time_limit > 0.0:
            yield f"time_limit must be positive (seconds), got {self.time_limit}"
        is_known = (
            self.on_error is None
            or self.on_error == "raise"
            or score_functions.is_score(self.on_error)
        )
        if not is_known:
            yield f"on_error must be 'raise', None or a finite number, got {self.on_error!r}"
        if not callable(self.fn):
            yield f"{self.fn!r} is not callable"
        else:
            yield from self._function_problems()

    def _function_problems(self) -> Iterator[str]:
        try:
            named = inspect.signature(self.fn).parameters
        except ValueError:
            yield f"{self.title}: its signature cannot be read; wrap it in a function"
            return
        if set(BATCH_ARGUMENTS) & set(named) and set(SAMPLE_ARGUMENTS) & set(named):
            yield (
                f"{self.title} names both of {list(named)[:4]}: prompts and completions are those "
                "of a batch, prompt and completion those of one sample; choose one kind"
            )
        if by_place := score_functions.positional_only(self.fn):
            yield (
                f"{self.title} takes {by_place[0]!r} by its place (before a /), and arguments are "
                "given by name"
            )
        if self.workers is not None and not self.takes_samples:
            yield f"workers is not read: {self.title} takes a whole batch in one call"
        if self.run_in != "process":
            return
        if self.is_async:
            yield f"{self.title} is async, which run_in='process' does not run; use 'thread'"
        try:
            pickle.dumps(self.fn)
        except Exception as error:  # pickle raises whatever the object does
            yield (
                f"{self.title} cannot go to another process ({error_text.describe(error)}); "
                "define it at the top of a module"
            )

    @property
    def title(self) -> str:
        """What to call the function."""
        return self.name or score_functions.name_of(self.fn)

    @property
    def takes_samples(self) -> bool:
        """Whether a call is for one completion: the function names ``prompt`` or ``completion``."""
        named = inspect.signature(self.fn).parameters
        return any(name in named for name in SAMPLE_ARGUMENTS)

    @property
    def is_async(self) -> bool:
        """Whether what the function returns must be awaited."""
        fn = self.fn.func if isinstance(self.fn, functools.partial) else self.fn
        is_object = not isinstance(fn, (types.FunctionType, types.MethodType, type))
        return inspect.iscoroutinefunction(type(fn).__call__ if is_object else fn)

    @property
    def num_workers(self) -> int:
        """Calls at the same time."""
        if not self.takes_samples:
            return 1
        if self.workers is not None:
            return self.workers
        if self.is_async:
            return 32
        return 2 if self.run_in == "process" else 1

    @property
    def required_columns(self) -> list[str]:
        """Columns that the function cannot do without."""
        texts = (*BATCH_ARGUMENTS, *SAMPLE_ARGUMENTS)
        return [name for name in score_functions.required(self.fn) if name not in texts]

    def arguments(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[dict[str, Any]]:
        """Return the keyword arguments of every call: all with ``**kwargs``, else what is named."""
        names = SAMPLE_ARGUMENTS if self.takes_samples else BATCH_ARGUMENTS
        given = {**columns, names[0]: prompts, names[1]: completions}
        # Values of its own: what one function does to them is nothing to the others.
        own = {
            name: [score_functions.own_copy(value) for value in values]
            for name, values in score_functions.taken(self.fn, given).items()
        }
        if not self.takes_samples:
            return [own]
        return [{name: own[name][i] for name in own} for i in range(len(completions))]


def unique_names(settings: Sequence[Reward]) -> list[str]:
    """Return a name per function; a repeated name gets a number."""
    names: list[str] = []
    for one in settings:
        unique, count = one.title, 1
        while unique in names:
            count += 1
            unique = f"{one.title}_{count}"
        names.append(unique)
    return names
