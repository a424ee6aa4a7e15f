"""Log-probabilities under a model that is not trained."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from tunix.data import preference_batching
from tunix.sft import sharding_utils
from tunix.sft.dpo import answer_logps


class Reference:
    """Computes log-probabilities of answers under the reference policy.

    Args:
        model: The model; its arrays are read anew at every call.
        adapters: Whether it computes with its LoRA adapters. False makes the policy of a LoRA
            run its own reference: no second copy of the weights.
        data_sharding_axis: Mesh axes that the rows of a batch are split over.
    """

    def __init__(
        self, model: nnx.Module, *, adapters: bool, data_sharding_axis: tuple[str, ...] = ()
    ):
        self._model, self._axis = model, data_sharding_axis
        # The structure is split once; the arrays change while the policy is trained.
        graphdef, state = nnx.split(model)
        self._mesh = sharding_utils.mesh_of(state)

        def logps(state: nnx.State, rows: preference_batching.AnswerRows) -> Float[Array, "R A"]:
            return answer_logps.answer_logps(nnx.merge(graphdef, state), rows, adapters=adapters)

        self._logps = jax.jit(logps)

    def __call__(self, rows: preference_batching.AnswerRows) -> Float[Array, "R A"]:
        """Return the log-probability of every answer, 0 where there is none."""
        if self._mesh is not None:
            rows = sharding_utils.shard_input(
                rows, self._axis, mesh=self._mesh, replicate_uneven=True
            )
        return self._logps(nnx.state(self._model), rows)
