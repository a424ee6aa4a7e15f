"""A model that is trained, and the place it is trained in."""

from collections.abc import Callable, Sequence

from jaxtyping import Array, Float

from tunix.rl import common, trainer
from tunix.sft import place as place_lib
from tunix.sft.loop import step_handle


class TrainedRole:
    """Actor or critic: takes batches from anywhere to where the model is.

    Args:
        owner: Trains the model.
        place: Where it is.
    """

    def __init__(self, owner: trainer.Trainer, place: place_lib.Place):
        self.trainer, self.place = owner, place

    def compute(
        self, fn: Callable[..., Float[Array, " N"]], batch: common.PolicyBatch
    ) -> Float[Array, " N"]:
        """Return ``fn(model, batch=batch)`` without gradient; compiled once for each ``fn``.

        Args:
            fn: Says something of every predicted token.
            batch: A chunk.
        """
        return self.trainer.compute(fn, self.place.put(batch))

    def update(
        self, micro_batches: Sequence[common.PolicyBatch], weight: float
    ) -> step_handle.StepHandle:
        """Take one optimizer step, without waiting for it.

        Args:
            micro_batches: What is learned from.
            weight: That of trajectories known to have neither loss nor gradient.
        """
        here = [self.place.fetch(batch) for batch in micro_batches]
        return self.trainer.step_on([{"batch": batch} for batch in here], weight=weight)
