"""The position in the training data: drawn from one batch at a time, saved, and found again."""

import base64
import itertools
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

_LOG = logging.getLogger(__name__)


@runtime_checkable
class StatefulIterator(Protocol):
    """An iterator (or data set) that can tell and find its position."""

    def get_state(self) -> Any:
        """Return the position as bytes or as something that JSON can hold."""

    def set_state(self, state: Any) -> None:
        """Go to a position."""


class TrainData:
    """Reads a data set and knows where it stands.

    Batches are drawn when they are used, never ahead, so the position that is saved with a step is
    exactly behind the batches of that step.
    """

    def __init__(self, dataset: Iterable[Any]):
        self._iterator = iter(dataset)
        # A data set may keep its position in its iterator (Grain) or in itself.
        keepers = (self._iterator, dataset)
        self._keeper = next((k for k in keepers if isinstance(k, StatefulIterator)), None)

    def take(self, n: int) -> list[Any]:
        """Return the next ``n`` batches, fewer at the end of the data."""
        return list(itertools.islice(self._iterator, n))

    def state(self) -> dict[str, Any]:
        """Return the position as something that JSON can hold; empty if the data has none."""
        if self._keeper is None:
            return {}
        state = self._keeper.get_state()
        if isinstance(state, bytes):
            return {"base64": base64.b64encode(state).decode("ascii")}
        return {"state": state}

    def resume(self, state: Mapping[str, Any], num_consumed: int) -> None:
        """Go to where a run was saved.

        Args:
            state: What :meth:`state` returned then. If it is empty, or this data set cannot go to
                a position, the consumed batches are read and skipped.
            num_consumed: How many batches had been consumed.

        Raises:
            ValueError: If there are fewer batches than were consumed.
        """
        if state and self._keeper is not None:
            coded = state.get("base64")
            self._keeper.set_state(state["state"] if coded is None else base64.b64decode(coded))
            return
        skipped = sum(1 for _ in itertools.islice(self._iterator, num_consumed))
        if skipped < num_consumed:
            raise ValueError(
                f"cannot resume: the checkpoint was saved after {num_consumed} batches, but "
                f"train_ds has only {skipped}; pass the same data as before, from its start"
            )
        _LOG.info("skipped %d batches that were trained on before", skipped)
