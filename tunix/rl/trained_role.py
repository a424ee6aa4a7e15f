"""A model that is trained, and the place it is trained in."""

from collections.abc import Callable, Sequence

from jaxtyping import Array, Float

from tunix.rl import common, placement, row_chunks, trainer
from tunix.sft import step_handle


class TrainedRole:
    """Actor or critic: takes batches from anywhere to where the model is.

    Args:
        owner: Trains the model.
        place: Where it is.
        rows: Rows of tokens that :meth:`compute` reads at a time; ``None`` reads all at once.
    """

    def __init__(self, owner: trainer.Trainer, place: placement.Place, rows: int | None):
        self.trainer, self.place, self._rows = owner, place, rows

    def compute(
        self, fn: Callable[..., Float[Array, "S C"]], batch: common.PolicyBatch
    ) -> Float[Array, "S C"]:
        """Return ``fn(model, batch=batch)`` without gradient; compiled once for each ``fn``.

        Args:
            fn: Says something of every completion token, and 0 of those a batch does not have.
            batch: Its rows may come a few at a time.
        """
        return row_chunks.by_chunks(
            lambda part: self.trainer.compute(fn, self.place.put(part)),
            batch,
            self._rows,
            multiple=self.place.data_parallelism,
        )

    def update(self, micro_batches: Sequence[common.PolicyBatch]) -> step_handle.StepHandle:
        """Take one optimizer step, without waiting for it."""
        here = [self.place.fetch(batch) for batch in micro_batches]
        return self.trainer.step_on([{"batch": batch} for batch in here])
