"""What a low-rank adapter is made of, and how one call of the decoder uses adapters."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

DEFAULT = "default"
"""Name of an adapter that was not given one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """The static part of the adapter of one projection."""

    name: str = DEFAULT
    alpha: float
    use_rslora: bool = False
    dropout: float = 0.0
    stream: int = 0
    """Tells the dropout of projections of one layer apart."""

    def scale(self, rank: int) -> float:
        """Return what the low-rank product is multiplied with."""
        return self.alpha / (math.sqrt(rank) if self.use_rslora else rank)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterUse:
    """Whether one call computes with adapters, and with which dropout."""

    active: bool = True
    dropout_key: PRNGKeyArray | None = None
    """Drops inputs of adapters as their settings say; ``None`` drops nothing."""

    def dropped(
        self, x: Float[Array, "*b i"], settings: AdapterSettings
    ) -> Float[Array, "*b i"] | None:
        """Return ``x`` with entries dropped and the others scaled up; ``None`` without dropout."""
        if self.dropout_key is None or settings.dropout == 0.0:
            return None
        key = jax.random.fold_in(self.dropout_key, settings.stream)
        kept = jax.random.bernoulli(key, 1.0 - settings.dropout, x.shape)
        return jnp.where(kept, x / (1.0 - settings.dropout), 0.0).astype(x.dtype)


ON = AdapterUse()
"""Adapters without dropout: inference, and log-probabilities that are compared."""


class Frozen(nnx.Variable):
    """Weights that no trainer changes: codes of a quantised matrix, adapters that are not in use.

    Trainers carry them along beside the state they donate; checkpoints of a model hold them.
    """


class AdapterDropout(nnx.Module):
    """The random stream of a model's adapter dropout, part of the state of training."""

    def __init__(self, key: PRNGKeyArray):
        self.stream = nnx.RngStream(key, tag="adapter_dropout")
        self.deterministic = False  # what model.eval() and model.train() set

    def __call__(self) -> PRNGKeyArray | None:
        """Return a key that no other call got, or ``None`` in evaluation mode."""
        return None if self.deterministic else self.stream()
