"""Who sees whom where images stand between tokens.

Attention is causal, except that the tokens of one image see each other in both directions. Nothing
here knows models. Axes: ``B`` rows, ``T`` tokens.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def image_span_ids(is_image: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Return the number of the image that each token belongs to, from 1 in every row; 0 is none.

    Adjacent image tokens are of one image: between two images there are always other tokens, those
    that end the one and start the next.
    """
    before = jnp.pad(is_image, ((0, 0), (1, 0)))[:, :-1]
    return jnp.where(is_image, jnp.cumsum(is_image & ~before, axis=1, dtype=jnp.int32), 0)


def make_causal_bidirectional_attention_mask(
    causal_mask: Bool[Array, "B T T"], *, bidirectional_mask: Bool[Array, "B T"] | None = None
) -> Bool[Array, "B T T"]:
    """Return ``causal_mask`` with every run of adjacent bidirectional tokens seeing all of itself.

    Args:
        causal_mask: True where query ``t`` may see key ``s``.
        bidirectional_mask: True for tokens of images; ``None`` for none.
    """
    if bidirectional_mask is None:
        return causal_mask
    spans = image_span_ids(bidirectional_mask)
    together = (spans[:, :, None] == spans[:, None, :]) & (spans != 0)[:, :, None]
    return causal_mask | together


def get_attention_mask(
    tokens: Int[Array, "B T"],
    *,
    inputs_mask: Bool[Array, "B T"] | None = None,
    token_placeholder_id: int | None = None,
) -> Bool[Array, "B T T"]:
    """Return which keys each query may see in a layer without a window.

    A model makes the spans of images itself where it is given images, so it needs this mask only
    to hide padding, for which ``segment_ids`` serve better: they need no ``[T, T]`` array.

    Args:
        tokens: Token ids.
        inputs_mask: False at padding, which is not seen; ``None`` for no padding.
        token_placeholder_id: The token that stands for an image vector; ``None`` for no images.
    """
    length = tokens.shape[1]
    mask = jnp.broadcast_to(jnp.tri(length, dtype=jnp.bool_), (tokens.shape[0], length, length))
    if token_placeholder_id is not None:
        is_image = tokens == token_placeholder_id
        mask = make_causal_bidirectional_attention_mask(mask, bidirectional_mask=is_image)
    return mask if inputs_mask is None else mask & inputs_mask[:, None, :].astype(jnp.bool_)
