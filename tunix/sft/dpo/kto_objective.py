"""The loss of a batch of rated answers, as sums and weights. Axis: ``S`` all answers of a batch."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tunix.data.preference import preference_batching
from tunix.sft import loss_output
from tunix.sft.dpo import answer_logps, kto_loss


class RatioSum(NamedTuple):
    """Sum of the log-ratios of foreign answers, and how many there are."""

    total: Float[Array, ""]
    number: Float[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class KTOObjective:
    """KTO with a reference point estimated over the whole optimizer step."""

    beta: float
    desirable_weight: float
    undesirable_weight: float

    needs_reference = True
    is_coupled = True

    def statistics(self, model: Any, batch: preference_batching.RatingBatch) -> RatioSum:
        """Return what the reference point of the step is made of; adapters drop nothing in it."""
        logps = jax.lax.stop_gradient(answer_logps.answer_logps(model, batch.foreign))
        valid = jnp.asarray(batch.foreign.lengths) > 0
        ratio = jnp.where(valid, logps - _known(batch.ref_foreign_logps), 0.0)
        return RatioSum(ratio.sum(), valid.sum().astype(jnp.float32))

    def couple(self, statistics: Sequence[RatioSum]) -> list[Float[Array, ""]]:
        """Return the reference point of the step, for each of its micro-batches."""
        whole = jax.tree.map(lambda *x: jnp.stack(x).sum(), *statistics)
        return [kto_loss.reference_point(whole.total, whole.number)] * len(statistics)

    def loss(
        self,
        model: Any,
        batch: preference_batching.RatingBatch,
        context: Float[Array, ""] | None = None,
    ) -> loss_output.LossOutput:
        """Return the summed loss of the answers, their number and metrics.

        Args:
            model: The policy.
            batch: Rated answers with the reference's log-probabilities.
            context: From :meth:`couple`; by default the batch is a whole step.
        """
        kl = self.couple([self.statistics(model, batch)])[0] if context is None else context
        valid = (jnp.asarray(batch.rows.lengths) > 0).reshape(-1)
        key = answer_logps.training_key(model)
        logps = answer_logps.answer_logps(model, batch.rows, dropout_key=key).reshape(-1)
        ratio = jnp.where(valid, logps - _known(batch.ref_logps).reshape(-1), 0.0)
        good = jnp.asarray(batch.is_desirable).reshape(-1)
        losses = kto_loss.kto(
            ratio,
            good,
            kl,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
        count = valid.sum().astype(jnp.float32)
        metrics = {"kl": (kl * count, count)}
        for name, members in (("chosen", valid & good), ("rejected", valid & ~good)):
            number = members.sum().astype(jnp.float32)
            for metric, values in (("rewards", self.beta * ratio), ("logps", logps)):
                metrics[f"{metric}/{name}"] = (jnp.where(members, values, 0.0).sum(), number)
        return loss_output.LossOutput(
            loss_sum=jnp.where(valid, losses, 0.0).sum(),
            weight_sum=count,
            metrics=jax.lax.stop_gradient(metrics),
        )


def _known(ref_logps: Array | None) -> Float[Array, "R A"]:
    if ref_logps is None:
        raise ValueError("the batch has no reference log-probabilities; KTO needs them")
    return jnp.asarray(ref_logps)
