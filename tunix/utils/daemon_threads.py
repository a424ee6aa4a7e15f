"""Calls of users' functions at the same time, which do not keep the program from ending."""

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_LOOK_SECONDS = 0.5


def map_all(
    fn: Callable[[ItemT], ResultT], items: Iterable[ItemT], num_threads: int
) -> list[ResultT]:
    """Return ``fn`` of every item, in their order.

    The threads of ``concurrent.futures`` are waited for when the program ends: after a Ctrl-C, a
    call that never returns would keep it from ending.

    Args:
        fn: Called in up to ``num_threads`` threads at once.
        items: What it is called with.
        num_threads: At least 1.

    Raises:
        BaseException: What ``fn`` raises for the first item that it raises for, once all are done.
    """
    given = list(items)
    left = iter(range(len(given)))
    results: dict[int, ResultT] = {}
    errors: dict[int, BaseException] = {}

    def work() -> None:
        # ``next`` of a range's iterator is one step for the interpreter: no two get the same.
        for i in left:
            try:
                results[i] = fn(given[i])
            except BaseException as error:  # raised in the thread that waits
                errors[i] = error

    threads = [
        threading.Thread(target=work, daemon=True) for _ in range(min(num_threads, len(given)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        # With an end: a signal that comes just before a wait without one is not noticed in it.
        while thread.is_alive():
            thread.join(_LOOK_SECONDS)
    if errors:
        raise errors[min(errors)]
    return [results[i] for i in range(len(given))]
