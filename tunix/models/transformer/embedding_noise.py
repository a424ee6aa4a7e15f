"""Noise on token embeddings while training (NEFTune, arXiv:2310.05914)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray


class EmbeddingNoise(nnx.Module):
    """Adds noise to what the first layer gets; its random stream is part of the training state.

    Every entry gets a uniform number in ``±alpha / sqrt(L d)``, with ``d`` channels and ``L``
    tokens of the example, its padding not counted. So the noise of a token does not depend on
    how examples are padded or packed. In evaluation mode nothing is added.
    """

    def __init__(self, alpha: float, key: PRNGKeyArray):
        """Draw from ``key``; ``alpha`` is 5 to 15 in the paper."""
        self.alpha = alpha
        self.stream = nnx.RngStream(key, tag="embedding_noise")
        self.deterministic = False  # what model.eval() and model.train() set

    def __call__(
        self, embeddings: Float[Array, "B T D"], segment_ids: Int[Array, "B T"] | None
    ) -> Float[Array, "B T D"]:
        """Return the embeddings with noise that no other call got.

        Args:
            embeddings: What the first layer would get.
            segment_ids: Which example of its row a token belongs to; ``None`` is one a row.
        """
        if self.deterministic:
            return embeddings
        _, length, width = embeddings.shape
        lengths = jnp.full(embeddings.shape[:2], length, jnp.int32)
        if segment_ids is not None:
            lengths = jax.vmap(lambda row: jnp.bincount(row, length=length + 1)[row])(segment_ids)
        bound = self.alpha * jax.lax.rsqrt(lengths.astype(jnp.float32) * width)
        noise = jax.random.uniform(self.stream(), embeddings.shape, jnp.float32, -1.0, 1.0)
        return embeddings + noise * bound[..., None]
