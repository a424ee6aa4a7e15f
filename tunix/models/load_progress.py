"""A progress bar for what takes long: on a terminal only, and only after a second."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

DELAY_SECONDS = 1.0
"""What is done sooner shows nothing."""


def shown(
    items: Iterable[T],
    sizes: Iterable[int],
    label: str,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[T]:
    """Yield ``items``; where stderr is a terminal, show how far the caller has come.

    Args:
        items: What is worked on, one after the other.
        sizes: Bytes of each, which the bar counts.
        label: Says what is done.
        clock: Returns seconds.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    from rich import console, progress  # not needed where nobody looks

    sizes = list(sizes)
    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.DownloadColumn(),
    )
    bar = progress.Progress(*columns, console=console.Console(stderr=True), transient=True)
    task = bar.add_task(label, total=sum(sizes))
    start = clock()
    try:
        for item, size in zip(items, sizes, strict=True):
            yield item
            bar.advance(task, size)
            if not bar.live.is_started and clock() - start > DELAY_SECONDS:
                bar.start()
    finally:
        bar.stop()
