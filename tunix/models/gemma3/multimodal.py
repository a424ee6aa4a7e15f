"""The decoder that also reads images: Gemma 3 from 4B up.

An image becomes ``S`` vectors that take the place of as many placeholder tokens, and these see
each other in both directions; all else is the shared decoder. Nothing here knows files. Axes: ``B``
rows, ``T`` tokens, ``N`` images of a row, ``S`` vectors of an image, ``D`` width of the text.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import core
from jaxtyping import Array, Bool, Float, Int

from tunix.models.gemma3 import merge_embeddings, utils, vision
from tunix.models.transformer import cache as cache_lib
from tunix.models.transformer import config as config_lib
from tunix.models.transformer import decoder
from tunix.ops import visibility as visibility_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTextConfig(config_lib.TransformerConfig):
    """A decoder and, where there is a ``vision_config``, the image tower in front of it."""

    vision_config: vision.SigLIPConfig | None = None
    """The image tower; ``None`` for a model of text only."""
    freeze_vision_tower: bool = True
    """Whether training of all parameters leaves those of the tower alone, as that of Gemma 3 itself
    did (arXiv:2503.19786). The projector is trained either way; adapters are for the text alone."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these sizes and choices."""
        yield from super().problems()
        window = self.sliding_window_size
        if self.vision_config is None or window is None:
            return
        if (size := self.vision_config.num_mm_tokens_per_image) > window:
            yield (
                f"an image takes {size} tokens, more than sliding_window_size ({window}): whether "
                "its tokens still see each other in local layers differs between implementations"
            )


class ImageTextDecoder(decoder.Decoder):
    """The shared decoder with ``vision_tower`` and ``multi_modal_projector``, if it has any."""

    config: ImageTextConfig

    def __init__(self, config: ImageTextConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        if config.vision_config is not None:
            self.vision_tower = vision.SigLiP(
                config.vision_config, config, frozen=config.freeze_vision_tower, rngs=rngs
            )
            self.multi_modal_projector = vision.MultiModalProjector(
                config.vision_config, config, rngs=rngs
            )

    def hidden(
        self,
        input_tokens: Int[Array, "B T"],
        visibility: visibility_lib.Visibility | None = None,
        cache: cache_lib.KVCache | None = None,
        *,
        images: Float[Array, "B N H W C"] | None = None,
        **options: Any,
    ) -> tuple[Float[Array, "B T D"], cache_lib.KVCache | None]:
        """Return float32 hidden states after the final norm, and the updated cache.

        Args:
            input_tokens: Token ids; every image stands as ``num_mm_tokens_per_image`` placeholders.
            visibility: As for :meth:`Decoder.hidden`; its mask also restricts what the tokens of
                an image see.
            cache: As there; a call with images takes none.
            images: Normalised pixels (:mod:`tunix.processors.image_processor`). The images of a
                row fill its placeholders in order; those that it has no placeholders for are
                padding, and not seen.
            **options: As for :meth:`Decoder.hidden`.

        Raises:
            ValueError: If the model has no tower, a row has not enough images or part of one, or
                images come with a cache, ``input_embeddings``, spans or an order of their own.
                What depends on token ids is not known under ``jax.jit``; see
                :func:`merge_embeddings`.
        """
        if images is not None:
            if visibility is None:
                visibility = visibility_lib.Visibility()
            is_image = self._image_places(input_tokens, images, visibility, cache, options)
            visibility = dataclasses.replace(visibility, span_ids=utils.image_span_ids(is_image))
            # The placeholder may lie outside the vocabulary; its embedding is replaced anyway.
            options["input_embeddings"] = merge_embeddings.merge_embeddings(
                text_embeddings=self.embed(jnp.where(is_image, 0, input_tokens)),
                vision_embeddings=self.encode_images(images),
                mask=is_image,
            )
        elif self.config.vision_config is not None and options.get("input_embeddings") is None:
            _check_text(input_tokens, self.config.vision_config)
        return super().hidden(input_tokens, visibility, cache, **options)

    def encode_images(self, images: Float[Array, "B N H W C"]) -> Float[Array, "B N S D"]:
        """Return the vectors that take the place of each image's tokens."""
        batch, number = images.shape[:2]
        patches = self.vision_tower(images.reshape(-1, *images.shape[2:]))
        vectors = self.multi_modal_projector(patches)
        return vectors.reshape(batch, number, *vectors.shape[1:])

    def get_attention_mask(
        self, tokens: Int[Array, "B T"], *, inputs_mask: Bool[Array, "B T"] | None = None
    ) -> Bool[Array, "B T T"]:
        """Return which keys each query may see, images included; ``inputs_mask`` hides padding."""
        config = self.config.vision_config
        placeholder = None if config is None else config.soft_token_placeholder
        return utils.get_attention_mask(
            tokens, inputs_mask=inputs_mask, token_placeholder_id=placeholder
        )

    def _image_places(
        self,
        tokens: Int[Array, "B T"],
        images: Float[Array, "B N H W C"],
        visibility: visibility_lib.Visibility,
        cache: cache_lib.KVCache | None,
        options: dict[str, Any],
    ) -> Bool[Array, "B T"]:
        """Return where images stand; raise unless these can stand in these tokens."""
        config = self.config.vision_config
        if config is None:
            raise ValueError(
                "images were passed to a model without an image tower; build it with a "
                "vision_config (text_only=False for a preset)"
            )
        if images.ndim != 5 or images.shape[0] != tokens.shape[0]:
            raise ValueError(
                f"images must be [rows, images, height, width, channels] for {tokens.shape[0]} "
                f"rows, got shape {images.shape}"
            )
        if cache is not None:
            raise ValueError(
                "images cannot be read into a cache: generation from images is not supported; "
                "pass cache=None"
            )
        made = {"input_embeddings": options.get("input_embeddings")}
        made |= {name: getattr(visibility, name) for name in ("span_ids", "order")}
        if given := [name for name, value in made.items() if value is not None]:
            raise ValueError(f"images make {given} themselves; pass one or the other")
        counts = _num_placeholders(tokens, config)
        size = config.num_mm_tokens_per_image
        if counts is not None and (counts % size).any():
            raise ValueError(
                f"rows have {counts.tolist()} image tokens, expected multiples of {size}, one for "
                "each image; a prompt was cut off inside an image, or never expanded"
            )
        return tokens == config.soft_token_placeholder


def _check_text(tokens: Int[Array, "B T"], config: vision.SigLIPConfig) -> None:
    counts = _num_placeholders(tokens, config)
    if counts is not None and counts.any():
        raise ValueError(
            f"rows have {counts.tolist()} image tokens (id {config.soft_token_placeholder}), but "
            "no images were passed"
        )


def _num_placeholders(
    tokens: Int[Array, "B T"], config: vision.SigLIPConfig
) -> Int[Array, " B"] | None:
    """Return the placeholders of each row, ``None`` where values are not known yet."""
    counts = (tokens == config.soft_token_placeholder).sum(axis=1)
    return None if isinstance(counts, core.Tracer) else counts
