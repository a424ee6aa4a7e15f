"""NEFTune: supervised training with noise on the embeddings (arXiv:2310.05914)."""

import jax
from flax import nnx

from tunix.models.transformer import decoder as decoder_lib
from tunix.models.transformer import embedding_noise


def add_noise(model: nnx.Module, alpha: float, *, seed: int) -> None:
    """Have ``model`` train on noisy embeddings, in place; evaluation and sampling have none.

    The random stream is part of the state that trainers save, so a resumed run draws what an
    uninterrupted one would. ``losses.NextTokenLoss`` is the loss that asks for the noise.

    Args:
        model: A ``Decoder``, before a trainer is made of it.
        alpha: Size of the noise; 5 to 15 in the paper.
        seed: Of the random stream.

    Raises:
        TypeError: If the model is no ``Decoder``, into which noise can be fed.
        ValueError: If ``alpha`` is not positive.
    """
    if not isinstance(model, decoder_lib.Decoder):
        raise TypeError(
            f"noise on embeddings needs a tunix Decoder, got a {type(model).__name__}; leave out "
            "neftune_alpha, or add the noise in the model"
        )
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    model.embedding_noise = embedding_noise.EmbeddingNoise(alpha, jax.random.key(seed))


def remove_noise(model: decoder_lib.Decoder) -> None:
    """Take the noise away, for a model that is used on."""
    model.embedding_noise = None
