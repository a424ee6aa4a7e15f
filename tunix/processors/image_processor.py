"""Images as Gemma 3 reads them: resized, normalised pixels, and prompts with room for them.

Nothing here knows tokenizers: a prompt is expanded as text, before it is tokenised, because the
blank lines around an image merge with those of the prompt. Axes: ``B`` prompts, ``N`` images of a
prompt, ``H`` height, ``W`` width, ``C`` colours (red, green, blue).
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from tunix.models.gemma3 import vision_config

START_OF_IMAGE = "<start_of_image>"
SOFT_TOKEN = "<image_soft_token>"
END_OF_IMAGE = "<end_of_image>"

Image = Any
"""A path, a ``uint8`` array ``[H, W]``, ``[H, W, 1]``, ``[H, W, 3]`` or ``[H, W, 4]``, or a Pillow
image."""


class ImageError(ValueError):
    """An image that cannot be read, or images and prompts that do not fit each other."""


class ImageProcessor:
    """Prepares images and prompts for a Gemma 3 with an image tower.

    Each image is taken whole: it is squeezed into the square of the config, never cropped.

    Args:
        config: Of the image tower.
    """

    def __init__(self, config: vision_config.SigLIPConfig):
        self.config = config

    def __call__(
        self, images: Image | Sequence[Image | Sequence[Image | None] | None]
    ) -> list[list[np.ndarray]]:
        """Return the processed images of every prompt.

        Args:
            images: One image; or for each prompt an image, a list of images, or ``None``. A
                ``None`` in the list of a prompt stands for a black image.

        Raises:
            ImageError: If an image cannot be read.
        """
        if not isinstance(images, list | tuple):
            return [[self.preprocess_image(images)]]
        return [[self.preprocess_image(image) for image in _images_of(own)] for own in images]

    def batch(
        self, images: Sequence[Image | Sequence[Image | None] | None]
    ) -> Float[np.ndarray, "B N H W C"]:
        """Return the processed images of all prompts in one array, for ``model(..., images=)``.

        Every prompt has room for as many images as the fullest one, and at least for one; zeros
        fill what is left and are not seen.

        Raises:
            ImageError: If an image cannot be read.
        """
        processed = self(list(images))
        number = max((len(own) for own in processed), default=0)
        size = (self.config.image_height, self.config.image_width, 3)
        out = np.zeros((len(processed), max(1, number), *size), np.float32)
        for row, own in zip(out, processed, strict=True):
            for slot, image in zip(row, own, strict=False):
                slot[...] = image
        return out

    def preprocess_image(self, image: Image | None) -> Float[np.ndarray, "H W C"]:
        """Return one image in float32, resized with a triangle filter (antialiased) and normalised.

        Args:
            image: The image; ``None`` for a black one.

        Raises:
            ImageError: If it cannot be read.
        """
        config = self.config
        if image is None:
            pixels = np.zeros((config.image_height, config.image_width, 3), np.uint8)
        else:
            pixels = _resized(image, config.image_height, config.image_width)
        mean = np.asarray(config.image_mean, np.float32)
        return (pixels.astype(np.float32) - mean) / np.asarray(config.image_std, np.float32)

    def expand_prompt(self, prompt: str, num_images: int) -> str:
        """Return ``prompt`` with every ``<start_of_image>`` followed by room for its image.

        Raises:
            ImageError: Unless the prompt has ``num_images`` of them, none expanded already.
        """
        problems = []
        if (found := prompt.count(START_OF_IMAGE)) != num_images:
            problems.append(f"{found} {START_OF_IMAGE} for {num_images} images; write one for each")
        if SOFT_TOKEN in prompt:
            problems.append(f"it has {SOFT_TOKEN} already; pass the prompt as written")
        if problems:
            raise ImageError(f"prompt {_shortened(prompt)!r}: " + "; ".join(problems))
        soft = SOFT_TOKEN * self.config.num_mm_tokens_per_image
        return prompt.replace(START_OF_IMAGE, f"\n\n{START_OF_IMAGE}{soft}{END_OF_IMAGE}\n\n")

    def expand_prompts(
        self, prompts: Sequence[str], images: Sequence[Image | Sequence[Image | None] | None]
    ) -> list[str]:
        """Return every prompt with room for its images, given as to :meth:`batch`.

        Raises:
            ImageError: If prompts and images do not fit each other.
        """
        if len(prompts) != len(images):
            raise ImageError(f"{len(prompts)} prompts for {len(images)} lists of images")
        return [
            self.expand_prompt(prompt, len(_images_of(own)))
            for prompt, own in zip(prompts, images, strict=True)
        ]


def _images_of(own: Image | Sequence[Image | None] | None) -> Sequence[Image | None]:
    """Return the images of one prompt as a list."""
    if own is None:
        return []
    return own if isinstance(own, list | tuple) else [own]


def _resized(image: Image, height: int, width: int) -> np.ndarray:
    """Return the image as ``uint8`` red, green and blue of this size."""
    from PIL import Image as pil  # optional: only those who read images need it

    picture = _opened(image)
    if picture.mode != "RGB":
        picture = picture.convert("RGB")
    return np.asarray(picture.resize((width, height), pil.Resampling.BILINEAR))


def _opened(image: Image) -> Any:
    """Return the image as one of Pillow's."""
    from PIL import Image as pil
    from PIL import ImageOps, UnidentifiedImageError

    if isinstance(image, pil.Image):
        return image
    if isinstance(image, str | pathlib.Path):
        try:
            with pil.open(image) as opened:
                # Cameras store how they were held beside the pixels.
                return ImageOps.exif_transpose(opened)
        except (UnidentifiedImageError, OSError) as error:
            raise ImageError(f"{image}: cannot be read as an image ({error})") from error
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not is_image or 0 in array.shape:
        raise ImageError(
            f"an image array has shape {array.shape} and type {array.dtype}; expected uint8 values "
            "0 to 255 of shape [height, width, channels] with 1, 3 or 4 channels, or [height, "
            "width]"
        )
    return pil.fromarray(array)


def _shortened(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
