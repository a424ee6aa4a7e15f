"""A model that takes part in training without being trained: reference, reward model, teacher."""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
from flax import nnx

from tunix.models.transformer import token_ids
from tunix.sft import host_offload
from tunix.sft import place as place_lib


class FrozenModel:
    """Computes functions of a model where the model is, each compiled once.

    Args:
        model: Its structure stays; its arrays are read anew at every call, for it may be the
            policy itself, which training changes.
        data_sharding_axis: Mesh axes that the rows of a batch are split over, where the model's
            mesh has them.
        offload: Whether the weights wait in host memory, from now on, and are on the devices
            during calls alone. Nothing changes in the numbers; each call moves all weights.
    """

    def __init__(
        self,
        model: nnx.Module,
        *,
        data_sharding_axis: Iterable[str] = (),
        offload: bool = False,
    ):
        self.model = model
        self.place = place_lib.Place.of(model, data_sharding_axis)
        self._num_embeddings = token_ids.num_embeddings(model)
        self._programs: dict[Any, Callable[..., Any]] = {}
        self._offload = host_offload.HostOffload(model) if offload else None
        if self._offload is not None:
            self._offload.offload()

    def on_device(self) -> contextlib.AbstractContextManager[nnx.Module]:
        """Keep the weights on the devices between calls, where they are moved at all."""
        if self._offload is None:
            return contextlib.nullcontext(self.model)
        return self._offload.on_device()

    @property
    def nbytes(self) -> int:
        """Bytes of parameters that are on the devices between calls."""
        if self._offload is not None:
            return 0
        return sum(x.nbytes for x in jax.tree.leaves(nnx.state(self.model, nnx.Param)))

    def compute(self, fn: Callable[..., Any], batch: Any) -> Any:
        """Return ``fn(model, batch)``, without waiting for it.

        Args:
            fn: A pure function, the same object at every call.
            batch: A tree of arrays; moved to where the model is.

        Raises:
            TokenIdError: If the model has no embedding for one of the tokens.
        """
        token_ids.require(batch, self._num_embeddings)
        with self.on_device() as model:
            if fn not in self._programs:
                graphdef = nnx.graphdef(model)

                def run(state: nnx.State, batch: Any) -> Any:
                    return fn(nnx.merge(graphdef, state), batch)

                self._programs[fn] = jax.jit(run)
            return self._programs[fn](nnx.state(model), self.place.put(batch))
