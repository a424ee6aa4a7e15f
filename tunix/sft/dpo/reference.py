"""Log-probabilities under a model that is not trained."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from tunix.data.preference import preference_batching
from tunix.sft import frozen_model
from tunix.sft.dpo import answer_logps


class Reference:
    """Computes log-probabilities of answers under the reference policy.

    Args:
        model: The reference.
        adapters: Whether it computes with its LoRA adapters. False makes the policy of a LoRA
            run its own reference: no second copy of the weights.
        data_sharding_axis: Mesh axes that the rows of a batch are split over.
        offload: Whether its weights wait in host memory, see :class:`FrozenModel`.
    """

    def __init__(
        self,
        model: nnx.Module,
        *,
        adapters: bool,
        data_sharding_axis: tuple[str, ...] = (),
        offload: bool = False,
    ):
        self._is_policy = not adapters
        self._frozen = frozen_model.FrozenModel(
            model, data_sharding_axis=data_sharding_axis, offload=offload
        )
        self.on_device = self._frozen.on_device

        def logps(model: Any, rows: preference_batching.AnswerRows) -> Float[Array, "R A"]:
            return answer_logps.answer_logps(model, rows, adapters=adapters)

        self._logps = logps

    @property
    def nbytes(self) -> int:
        """Bytes that it takes on the devices between calls, beside the policy."""
        return 0 if self._is_policy else self._frozen.nbytes

    def __call__(self, rows: preference_batching.AnswerRows) -> Float[Array, "R A"]:
        """Return the log-probability of every answer, 0 where there is none.

        Raises:
            TokenIdError: If the reference has no embedding for one of the tokens.
        """
        if self._frozen.place.mesh is None:
            rows = answer_logps.on_one_device(rows)
        return self._frozen.compute(self._logps, rows)
