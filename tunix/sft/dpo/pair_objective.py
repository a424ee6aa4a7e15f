"""The loss of a batch of pairs: any mix of the losses of pairs, as sums and weights.

Every pair has weight 1. Axes: ``R`` rows, ``A`` answers of a row, ``P`` all pairs of a batch.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tunix.data.preference import preference_batching
from tunix.sft import loss_output
from tunix.sft.dpo import answer_logps, aot, preference_losses


class PairsOfBatch(NamedTuple):
    """What models say of the pairs of a batch, and which entries are pairs."""

    pairs: preference_losses.Pairs
    valid: Bool[Array, " P"]


@dataclasses.dataclass(frozen=True)
class Term:
    """One loss of the mix, with its settings and its weight."""

    name: str
    weight: float
    settings: Mapping[str, float]

    @property
    def loss(self) -> preference_losses.PairLoss:
        """What the name stands for."""
        return ALL_LOSSES[self.name]

    @property
    def is_coupled(self) -> bool:
        """Whether the loss of a pair depends on the other pairs of the step."""
        return self.name in aot.AOT_LOSSES

    def losses(
        self, pairs: preference_losses.Pairs, partners: aot.Partners | None
    ) -> Float[Array, " P"]:
        """Return the weighted loss of each pair."""
        args = (pairs, partners) if self.is_coupled else (pairs,)
        options = {name: self.settings[name] for name in self.loss.options}
        return self.weight * self.loss.fn(*args, **options)


ALL_LOSSES: Mapping[str, preference_losses.PairLoss] = {
    **preference_losses.PAIR_LOSSES,
    **aot.AOT_LOSSES,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairObjective:
    """A mix of losses, and the implicit reward that metrics show."""

    terms: tuple[Term, ...]
    reward: Callable[[preference_losses.Pairs], tuple[Any, Any]]
    """Returns the implicit rewards ``[P]`` of the chosen and of the rejected answers."""

    @property
    def needs_reference(self) -> bool:
        """Whether any loss compares with a reference model."""
        return any(term.loss.needs_reference for term in self.terms)

    @property
    def is_coupled(self) -> bool:
        """Whether a step's micro-batches must know of each other, see :meth:`couple`."""
        return any(term.is_coupled for term in self.terms)

    def statistics(self, model: Any, batch: preference_batching.PairBatch) -> PairsOfBatch:
        """Return what the other micro-batches of the step have to know of this one.

        Adapters drop nothing in it: a pair is compared with what the policy says of the others.
        """
        return pairs_of(answer_logps.answer_logps(model, batch.rows), batch)

    def couple(self, statistics: Sequence[PairsOfBatch]) -> list[aot.Partners]:
        """Return the context of every micro-batch of a step."""
        return aot.couple(statistics)

    def loss(
        self,
        model: Any,
        batch: preference_batching.PairBatch,
        context: aot.Partners | None = None,
    ) -> loss_output.LossOutput:
        """Return the summed loss of the pairs, their number and metrics.

        Args:
            model: The policy.
            batch: Pairs, with the reference's log-probabilities where they are needed.
            context: From :meth:`couple`; by default the batch is a whole step.
        """
        key = answer_logps.training_key(model)
        found = pairs_of(answer_logps.answer_logps(model, batch.rows, dropout_key=key), batch)
        pairs, valid = found
        if context is None and self.is_coupled:
            (context,) = self.couple([found if key is None else self.statistics(model, batch)])
        losses = sum(term.losses(pairs, context) for term in self.terms)
        return loss_output.LossOutput(
            loss_sum=jnp.where(valid, losses, 0.0).sum(),
            weight_sum=valid.sum().astype(jnp.float32),
            metrics=jax.lax.stop_gradient(self._metrics(pairs, valid)),
        )

    def _metrics(
        self, pairs: preference_losses.Pairs, valid: Bool[Array, " P"]
    ) -> dict[str, loss_output.Weighted]:
        chosen, rejected = self.reward(pairs)
        values = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).astype(jnp.float32),
            "logps/chosen": pairs.chosen,
            "logps/rejected": pairs.rejected,
            "logps/accuracies": (pairs.chosen > pairs.rejected).astype(jnp.float32),
        }
        return weighted_means(values, valid)


def weighted_means(
    values: Mapping[str, Float[Array, " P"]], valid: Bool[Array, " P"]
) -> dict[str, loss_output.Weighted]:
    """Return the sum of every metric over valid entries, and their number."""
    count = valid.sum().astype(jnp.float32)
    return {name: (jnp.where(valid, x, 0.0).sum(), count) for name, x in values.items()}


def pairs_of(logps: Float[Array, "R A"], batch: preference_batching.PairBatch) -> PairsOfBatch:
    """Return the pairs of a batch; entries that are none hold numbers that no loss chokes on."""
    lengths = jnp.asarray(batch.rows.lengths).reshape(-1, 2)
    valid = lengths[:, 0] > 0
    both = logps.reshape(-1, 2)
    known = jnp.zeros_like(both) if batch.ref_logps is None else jnp.asarray(batch.ref_logps)
    ref = known.reshape(-1, 2)
    # Mask the inputs, not only the losses: 0 * NaN is NaN in the backward pass.
    filled = jnp.where(valid[:, None], both, -1.0)
    counts = jnp.maximum(lengths, 1).astype(jnp.float32)
    pairs = preference_losses.Pairs(
        chosen=filled[:, 0],
        rejected=filled[:, 1],
        ref_chosen=ref[:, 0],
        ref_rejected=ref[:, 1],
        chosen_length=counts[:, 0],
        rejected_length=counts[:, 1],
    )
    return PairsOfBatch(pairs, valid)
