"""What a loss function returns: sums and the weights to divide them by, never means.

Only the trainer divides, once, by the weight of the whole optimizer step. So neither loss nor
gradient depends on how a batch was split into micro-batches, padded, packed or sharded.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Weighted = tuple[Float[Array, ""], Float[Array, ""]]
"""A sum and the weight that divides it."""


@flax.struct.dataclass
class LossOutput:
    """A loss and its metrics over some examples, ready to be added to those of others."""

    loss_sum: Float[Array, ""]
    """Weighted sum of the loss terms; the only thing that is differentiated."""
    weight_sum: Float[Array, ""]
    """Sum of the weights of those terms."""
    metrics: dict[str, Weighted] = flax.struct.field(default_factory=dict)
    """Further ``(sum, weight)`` pairs, each divided by its own weight."""
    maxima: dict[str, Float[Array, ""]] = flax.struct.field(default_factory=dict)
    """Metrics of which the largest counts, such as the worst deviation of any token."""

    @classmethod
    def from_scalar(cls, loss: Any, metrics: Mapping[str, Any] | None = None) -> "LossOutput":
        """Return a plain scalar loss as one unit of weight.

        Args:
            loss: A scalar, typically the mean of a batch. Micro-batches then count alike,
                whatever they hold; return sums and weights to have them count by content.
            metrics: Scalars, or ``(sum, weight)`` pairs.
        """
        one = jnp.float32(1.0)
        return cls(
            loss_sum=_scalar(loss, "the loss"),
            weight_sum=one,
            metrics={name: _pair(name, value) for name, value in (metrics or {}).items()},
        )

    def add(self, other: "LossOutput") -> "LossOutput":
        """Return the sums over the examples of both.

        Raises:
            ValueError: If the two do not have the same metrics.
        """
        ours, theirs = ({**x.metrics, **x.maxima}.keys() for x in (self, other))
        if ours != theirs:
            raise ValueError(
                f"cannot add loss outputs with different metrics: {sorted(ours)} and "
                f"{sorted(theirs)}; a loss must return the same metrics for every batch"
            )
        largest = jax.tree.map(jnp.maximum, self.maxima, other.maxima)
        return dataclasses.replace(jax.tree.map(jnp.add, self, other), maxima=largest)

    def finalize(self) -> dict[str, Float[Array, ""]]:
        """Return ``loss``, the mean loss, the metrics' means and the maxima, 0 of nothing."""
        means = {name: safe_ratio(*pair) for name, pair in self.metrics.items()}
        maxima = {name: jnp.where(x == -jnp.inf, 0.0, x) for name, x in self.maxima.items()}
        return {"loss": safe_ratio(self.loss_sum, self.weight_sum)} | means | maxima


def nothing(like: LossOutput | None) -> LossOutput:
    """Return what adds nothing to any loss output with the metrics of ``like``, on the host."""
    if like is None:
        zero: Any = np.float32(0.0)
        return LossOutput(loss_sum=zero, weight_sum=zero)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    least: Any = {name: np.full(x.shape, -np.inf, x.dtype) for name, x in like.maxima.items()}
    return dataclasses.replace(zeros, maxima=least)


def as_loss_output(result: Any, *, has_aux: bool) -> LossOutput:
    """Return what a loss function returned as a :class:`LossOutput`.

    Args:
        result: A ``LossOutput``, a scalar or, with ``has_aux``, ``(scalar, aux)``.
        has_aux: Whether the function was registered as returning ``(loss, aux)``, where ``aux``
            maps names to scalars or to ``(sum, weight)`` pairs.

    Raises:
        TypeError: If the result is none of these.
    """
    if isinstance(result, LossOutput):
        return result
    if has_aux:
        if not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(
                "the loss function was registered with has_aux=True and must return (loss, aux), "
                f"but returned {type(result).__name__}"
            )
        loss, aux = result
        if aux is not None and not isinstance(aux, Mapping):
            raise TypeError(
                "aux must map metric names to scalars or to (sum, weight) pairs, "
                f"found {type(aux).__name__}"
            )
        return LossOutput.from_scalar(loss, aux)
    if isinstance(result, tuple):
        raise TypeError(
            f"the loss function returned a tuple of {len(result)}; return a LossOutput or a "
            "scalar, or register it as with_loss_fn(fn, has_aux=True) if it returns (loss, aux)"
        )
    return LossOutput.from_scalar(result)


def safe_ratio(total: Float[Array, ""], weight: Float[Array, ""]) -> Float[Array, ""]:
    """Return ``total / weight``, and 0 where the weight is 0."""
    empty = weight == 0
    return jnp.where(empty, 0.0, total / jnp.where(empty, 1.0, weight))


def _scalar(value: Any, what: str) -> Float[Array, ""]:
    array = jnp.asarray(value)
    if array.shape != ():
        raise TypeError(
            f"{what} must be a scalar, found shape {array.shape}; return "
            "LossOutput(loss_sum=..., weight_sum=...) for losses of several terms"
        )
    return array.astype(jnp.float32)


def _pair(name: str, value: Any) -> Weighted:
    if isinstance(value, tuple) and len(value) == 2:
        return _scalar(value[0], f"metric {name!r}"), _scalar(value[1], f"metric {name!r}")
    return _scalar(value, f"metric {name!r}"), jnp.float32(1.0)
