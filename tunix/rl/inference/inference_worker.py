"""Forward passes of models that take part in training without being trained."""

from collections.abc import Callable, Mapping

import jax
from flax import nnx
from jaxtyping import Array, Float

from tunix.rl import common


class InferenceWorker:
    """Computes log-probabilities under the reference policy.

    Args:
        models: Models by role; only ``reference`` is known.
        adapters: Whether the reference computes with its LoRA adapters. False makes the
            actor of a LoRA run its own reference: no second copy of the weights.
    """

    def __init__(self, models: Mapping[str, nnx.Module], *, adapters: bool = True):
        self._models = dict(models)
        self._adapters = adapters
        self._logps: Callable[..., Float[Array, "S C"]] | None = None

    def get_model(self, role: str) -> nnx.Module:
        """Return the model of a role.

        Raises:
            ValueError: If no model has it.
        """
        if role not in self._models:
            raise ValueError(f"no model has the role {role!r}; there are {sorted(self._models)}")
        return self._models[role]

    def get_ref_per_token_logps(self, batch: common.PolicyBatch) -> Float[Array, "S C"]:
        """Return the reference's log-probabilities of the completion tokens of ``batch``."""
        model = self.get_model("reference")
        if self._logps is None:
            # The structure is split once; the arrays are read anew, since training replaces them.
            graphdef, adapters = nnx.graphdef(model), self._adapters

            def logps(state: nnx.State, batch: common.PolicyBatch) -> Float[Array, "S C"]:
                merged = nnx.merge(graphdef, state)
                return common.policy_logps(merged, batch, adapters=adapters).logps

            self._logps = jax.jit(logps)
        return self._logps(nnx.state(model), batch)
