"""Log-probabilities under a model that is not trained."""

import contextlib

import jax
from flax import nnx
from jaxtyping import Array, Float

from tunix.data import preference_batching
from tunix.models.transformer import token_ids
from tunix.sft import host_offload, sharding_utils
from tunix.sft.dpo import answer_logps


class Reference:
    """Computes log-probabilities of answers under the reference policy.

    Args:
        model: The model; its arrays are read anew at every call.
        adapters: Whether it computes with its LoRA adapters. False makes the policy of a LoRA
            run its own reference: no second copy of the weights.
        data_sharding_axis: Mesh axes that the rows of a batch are split over.
        offload: Whether the weights wait in host memory, from now on, and are on the devices
            during calls alone. Nothing changes in the numbers; each call moves all weights.
    """

    def __init__(
        self,
        model: nnx.Module,
        *,
        adapters: bool,
        data_sharding_axis: tuple[str, ...] = (),
        offload: bool = False,
    ):
        self._model, self._axis = model, data_sharding_axis
        self._is_policy = not adapters
        self._num_embeddings = token_ids.num_embeddings(model)
        # The structure is split once; the arrays change while the policy is trained.
        graphdef, state = nnx.split(model)
        self._mesh = sharding_utils.mesh_of(state)

        def logps(state: nnx.State, rows: preference_batching.AnswerRows) -> Float[Array, "R A"]:
            return answer_logps.answer_logps(nnx.merge(graphdef, state), rows, adapters=adapters)

        self._logps = jax.jit(logps)
        self._offload = host_offload.HostOffload(model) if offload else None
        if self._offload is not None:
            self._offload.offload()

    def on_device(self) -> contextlib.AbstractContextManager[nnx.Module]:
        """Keep the weights on the devices between calls, where they are moved at all."""
        if self._offload is None:
            return contextlib.nullcontext(self._model)
        return self._offload.on_device()

    @property
    def nbytes(self) -> int:
        """Bytes that it takes on the devices between calls, beside the policy."""
        if self._is_policy or self._offload is not None:
            return 0
        return sum(x.nbytes for x in jax.tree.leaves(nnx.state(self._model, nnx.Param)))

    def __call__(self, rows: preference_batching.AnswerRows) -> Float[Array, "R A"]:
        """Return the log-probability of every answer, 0 where there is none.

        Raises:
            TokenIdError: If the reference has no embedding for one of the tokens.
        """
        token_ids.require(rows, self._num_embeddings)
        if self._mesh is None:
            rows = answer_logps.on_one_device(rows)
        else:
            rows = sharding_utils.shard_input(
                rows, self._axis, mesh=self._mesh, replicate_uneven=True
            )
        with self.on_device() as model:
            return self._logps(nnx.state(model), rows)
