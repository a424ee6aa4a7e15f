"""Puts image vectors where a row of tokens has placeholders for them.

Nothing here knows models or token ids. Axes: ``B`` rows, ``T`` tokens, ``V`` image vectors of a
row, ``D`` channels.
"""

import jax
import jax.numpy as jnp
from jax import core
from jaxtyping import Array, Bool, Float


def merge_embeddings(
    *,
    text_embeddings: Float[Array, "B T D"],
    vision_embeddings: Float[Array, "B V D"] | Float[Array, "B N S D"],
    mask: Bool[Array, "B T"],
) -> Float[Array, "B T D"]:
    """Return the text's embeddings with slot ``i`` of each row replaced by its image vector ``i``.

    A row may have more vectors than slots: in a batch every row has room for as many images as
    the fullest one, and vectors behind a row's last slot are padding.

    Args:
        text_embeddings: Embeddings of all tokens.
        vision_embeddings: Image vectors of each row in order, in one axis or as images times
            vectors of an image.
        mask: True at the slots.

    Raises:
        ValueError: If a row has more slots than vectors. Under ``jax.jit`` values are not known
            and nothing can be raised: the slots without a vector are NaN there.
    """
    vectors = vision_embeddings.reshape(vision_embeddings.shape[0], -1, text_embeddings.shape[-1])
    mask = jnp.asarray(mask, jnp.bool_)
    counts = mask.sum(axis=1)
    if not isinstance(counts, core.Tracer) and (counts > vectors.shape[1]).any():
        raise ValueError(
            f"rows have {counts.tolist()} image slots but {vectors.shape[1]} image vectors each; "
            "give every row its images, in the order of their placeholders"
        )
    index = jnp.where(mask, jnp.cumsum(mask, axis=1) - 1, 0)
    # NaN, not the last vector again: a slot without its image must not pass unnoticed.
    chosen = jax.vmap(lambda row, at: row.at[at].get(mode="fill", fill_value=jnp.nan))(
        vectors, index
    )
    return jnp.where(mask[..., None], chosen.astype(text_embeddings.dtype), text_embeddings)
