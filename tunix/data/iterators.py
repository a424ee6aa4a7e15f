"""Batches in an order that depends on the seed and the epoch alone.

Nothing here knows what a batch is made of. The position is two integers, so a run that was
killed continues with the very batch that an uninterrupted one would have seen.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from jaxtyping import Int

from tunix.data import fingerprint

ExampleT = TypeVar("ExampleT")
BatchT = TypeVar("BatchT")
LastBatch = Literal["drop", "keep"]
GroupFn = Callable[[Int[np.ndarray, " N"]], Sequence[Sequence[int]]]
"""Lays the indices of an epoch into rows, e.g. by packing."""
OrderFn = Callable[[int], Int[np.ndarray, " N"]]
"""Returns the indices of an epoch in order, e.g. of a mixture."""

_MOST_COUNTED = 100_000_000
"""Examples of all epochs that are laid out to count their batches: some minutes."""


class BatchIterator(Generic[ExampleT, BatchT]):
    """Iterates over a list-like data set; ``get_state`` and ``set_state`` resume exactly."""

    def __init__(
        self,
        dataset: Sequence[ExampleT],
        batch_size: int,
        shuffle_seed: int | None = None,
        num_epochs: int | None = 1,
        *,
        collate: Callable[[Sequence[Sequence[ExampleT]]], BatchT],
        last_batch: LastBatch,
        group: GroupFn | None = None,
        order: OrderFn | None = None,
        content: int | None = None,
    ):
        """Start before the first batch.

        Args:
            dataset: Examples by index.
            batch_size: Rows per batch.
            shuffle_seed: ``None`` keeps the order of the data.
            num_epochs: ``None`` never ends.
            collate: Makes a batch of rows, each a list of examples.
            last_batch: What happens to an epoch's last batch if it is short.
            group: Which examples share a row; one each by default.
            order: Which examples an epoch has; by default each once, shuffled by the seed.
            content: Fingerprint of what the examples were made of, see ``fingerprint``.

        Raises:
            ValueError: If there is no batch to give, or an argument is out of range.
        """
        self.dataset, self.batch_size = dataset, batch_size
        self.shuffle_seed, self.num_epochs = shuffle_seed, num_epochs
        self._collate, self._last_batch = collate, last_batch
        self._group, self._order = group, order or self._every_example_once
        self._is_uniform = group is None and order is None  # the epochs are equally long
        self._content = content
        if problems := list(self._problems()):
            raise ValueError("cannot iterate: " + "; ".join(problems))
        self._epoch = self._batch = 0
        self._plan = self._plan_epoch(0)
        if not self._plan:
            raise ValueError(
                f"{len(dataset)} examples make no full batch of {batch_size} rows; choose a "
                "smaller batch_size, or set last_batch to 'keep'"
            )
        # Recognises, at resume, a data set or setting under which the position means another.
        self._fingerprint = zlib.crc32(repr(self._plan).encode())

    def __iter__(self) -> Iterator[BatchT]:
        """Return the iterator itself, wherever it stands."""
        return self

    def __next__(self) -> BatchT:
        """Return the next batch."""
        # A loop, for packing can leave an epoch without a full batch.
        while self._batch >= len(self._plan) and not self._finished:
            self._epoch, self._batch = self._epoch + 1, 0
            self._plan = [] if self._finished else self._plan_epoch(self._epoch)
        if self._finished:
            raise StopIteration
        rows = self._plan[self._batch]
        self._batch += 1
        return self._collate([[self.dataset[i] for i in row] for row in rows])

    def __len__(self) -> int:
        """Return the batches of all epochs, whatever the position.

        Raises:
            TypeError: If there is no end.
            ValueError: If there are more epochs than can be laid out to be counted.
        """
        if self.num_epochs is None:
            raise TypeError("an iterator without num_epochs has no length")
        if self._is_uniform:
            return self.num_epochs * len(self._plan_epoch(0))
        if self.num_epochs * len(self.dataset) > _MOST_COUNTED:
            raise ValueError(
                f"{self.num_epochs:,} epochs of {len(self.dataset):,} examples are too many to "
                "count: packing and mixtures lay out each of them anew; lower the number of epochs"
            )
        return sum(len(self._plan_epoch(epoch)) for epoch in range(self.num_epochs))

    def get_state(self) -> dict[str, int | None]:
        """Return the position: what ``set_state`` needs to continue with the next batch."""
        return {
            "epoch": self._epoch,
            "batch": self._batch,
            "fingerprint": self._fingerprint,
            fingerprint.KEY: self._content,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue where ``get_state`` was called.

        Raises:
            ValueError: If the state belongs to other data, another seed or batch size.
        """
        if state["fingerprint"] != self._fingerprint:
            raise ValueError(
                "cannot resume the data: the saved position belongs to other data or settings "
                "(rows, order, lengths, shuffle seed or batch size); restore those, or start anew"
            )
        fingerprint.require_same(state, self._content, "the data")
        self._epoch, self._batch = int(state["epoch"]), int(state["batch"])
        self._plan = [] if self._finished else self._plan_epoch(self._epoch)

    @property
    def _finished(self) -> bool:
        return self.num_epochs is not None and self._epoch >= self.num_epochs

    def _every_example_once(self, epoch: int) -> Int[np.ndarray, " N"]:
        order = np.arange(len(self.dataset))
        if self.shuffle_seed is None:
            return order
        return np.random.default_rng([self.shuffle_seed, epoch]).permutation(order)

    def _plan_epoch(self, epoch: int) -> list[list[list[int]]]:
        """Return the indices of every row of every batch."""
        order = self._order(epoch)
        grouped = [[int(i)] for i in order] if self._group is None else self._group(order)
        rows = [list(row) for row in grouped]
        batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        if self._last_batch == "drop" and batches and len(batches[-1]) < self.batch_size:
            batches.pop()
        return batches

    def _problems(self) -> Iterator[str]:
        if not len(self.dataset):
            yield "the data set is empty"
        if self.batch_size < 1:
            yield f"batch_size must be at least 1, got {self.batch_size}"
        if self.num_epochs is not None and self.num_epochs < 1:
            yield f"num_epochs must be at least 1 or None, got {self.num_epochs}"
        if self.shuffle_seed is not None and self.shuffle_seed < 0:
            yield f"shuffle_seed must not be negative, got {self.shuffle_seed}"
        if self._last_batch not in ("drop", "keep"):
            yield f"last_batch must be 'drop' or 'keep', got {self._last_batch!r}"


class BatchSettings(Protocol):
    """What the settings of every kind of data say of its batches."""

    @property
    def batch_size(self) -> int:
        """Rows per batch."""
        ...

    @property
    def shuffle_seed(self) -> int | None:
        """``None`` keeps the order of the data."""
        ...

    @property
    def num_epochs(self) -> int | None:
        """``None`` repeats the data for ever."""
        ...

    @property
    def last_batch(self) -> LastBatch:
        """What happens to a short last batch."""
        ...


class Batches(Generic[BatchT]):
    """The same batches again at every ``iter()``, for evaluation and plain loops."""

    def __init__(
        self, make_iterator: Callable[[], BatchIterator[Any, BatchT]], content: int | None = None
    ):
        """Hold on to what makes a fresh iterator."""
        self._make = make_iterator
        self.content = content
        """Fingerprint of what the examples were made of."""

    @classmethod
    def of(
        cls,
        examples: Sequence[Any],
        settings: BatchSettings,
        collate: Callable[[Sequence[Sequence[Any]]], BatchT],
        *,
        group: GroupFn | None = None,
        order: OrderFn | None = None,
        content: int | None = None,
    ) -> "Batches[BatchT]":
        """Return the batches that ``settings`` describe; see :class:`BatchIterator`."""
        return cls(
            lambda: BatchIterator(
                examples,
                settings.batch_size,
                settings.shuffle_seed,
                settings.num_epochs,
                collate=collate,
                last_batch=settings.last_batch,
                group=group,
                order=order,
                content=content,
            ),
            content,
        )

    def __iter__(self) -> BatchIterator[Any, BatchT]:
        """Return an iterator that stands at the beginning."""
        return self._make()

    def __len__(self) -> int:
        """Return the number of batches of one pass."""
        return len(self._make())
