"""A language model that gives a text one number instead of the next token.

Axes: ``R`` rows of ``T`` tokens, ``A`` answers of a row, ``D`` channels.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from tunix.data.preference import preference_batching
from tunix.models import lora
from tunix.models.transformer import decoder as decoder_lib


class RewardModel(nnx.Module):
    """A decoder whose last hidden state of an answer is mapped to a reward.

    Args:
        decoder: The language model, whose output head is not used. If it has LoRA adapters, they
            are trained with the new head; otherwise everything is.
        rngs: Initialises the head, normal with variance ``1 / (D + 1)``.
    """

    def __init__(self, decoder: decoder_lib.Decoder, *, rngs: nnx.Rngs):
        self.decoder = decoder
        size = decoder.config.embed_dim
        # A trainer of adapters trains this kind of parameter alone, and the head is as new.
        kind = nnx.LoRAParam if lora.is_lora_enabled(decoder) else nnx.Param
        self.score = kind(jax.random.normal(rngs.params(), (size,)) * (size + 1) ** -0.5)

    def rewards(
        self, rows: preference_batching.AnswerRows, *, dropout_key: PRNGKeyArray | None = None
    ) -> Float[Array, "R A"]:
        """Return the reward of every answer; what stands where there is none means nothing.

        Args:
            rows: Prompts and answers, laid down with their last tokens (``with_last=True``).
            dropout_key: Drops inputs of adapters, as their dropout says; ``None`` drops nothing.

        Raises:
            ValueError: If they were laid down without.
        """
        if rows.ends is None:
            raise ValueError(
                "the rows lack the last tokens of their answers, where a reward is read; make "
                "the batches with with_last=True"
            )
        ends = jnp.asarray(rows.ends)
        rows = jax.tree.map(jnp.asarray, rows)
        hidden, _ = self.decoder.hidden(rows.tokens, rows.visibility, dropout_key=dropout_key)
        states = jnp.take_along_axis(hidden, ends[:, :, None], axis=1)
        return states.astype(jnp.float32) @ self.score[...].astype(jnp.float32)
