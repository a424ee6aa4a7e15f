"""What Gemma 3's image tower is made of, and which tokens stand for an image."""

import dataclasses
import math
from collections.abc import Iterator

from tunix.utils import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigLIPConfig(config_lib.Config):
    """SigLIP So400m at 896 x 896 pixels, as Gemma 3 4B, 12B and 27B have it, by default.

    The tower cuts an image into patches, and the projector pools these to a square of
    ``num_mm_tokens_per_image`` vectors, one for each placeholder token of the text.
    """

    image_height: int = 896
    """Height of an image in pixels."""
    image_width: int = 896
    """Width of an image in pixels; images are square."""
    image_mean: tuple[float, ...] = (127.5, 127.5, 127.5)
    """What a pixel of value 0 to 255 is reduced by, red, green, blue."""
    image_std: tuple[float, ...] = (127.5, 127.5, 127.5)
    """What it is divided by then."""
    patch_size: tuple[int, int] = (14, 14)
    """Height and width of a patch in pixels."""
    width: int = 1152
    depth: int = 27
    mlp_dim: int = 4304
    num_heads: int = 16
    norm_eps: float = 1e-6
    num_mm_tokens_per_image: int = 256
    """How many tokens an image takes in the text."""
    soft_token_placeholder: int = 262_144
    """The token that an image vector replaces (``<image_soft_token>``)."""
    start_of_image_token: int = 255_999
    end_of_image_token: int = 256_000

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these sizes and tokens."""
        yield from super().problems()
        sizes = ("width", "depth", "mlp_dim", "num_heads", "num_mm_tokens_per_image")
        small = [name for name in (*sizes, "image_height") if getattr(self, name) < 1]
        for name in small:
            yield f"{name} must be at least 1, got {getattr(self, name)}"
        if self.image_height != self.image_width:
            yield (
                f"images must be square, got image_height {self.image_height} and image_width "
                f"{self.image_width}"
            )
        if len(self.patch_size) != 2 or len(set(self.patch_size)) != 1 or self.patch_size[0] < 1:
            yield f"patch_size must be two equal positive numbers, got {self.patch_size}"
        elif not small:
            yield from self._grid_problems()
        if "num_heads" not in small and self.width % self.num_heads:
            yield f"width ({self.width}) must be a multiple of num_heads ({self.num_heads})"
        if not self.norm_eps > 0:
            yield f"norm_eps must be positive, got {self.norm_eps}"
        for name in ("image_mean", "image_std"):
            if len(found := getattr(self, name)) != 3:
                yield f"{name} must hold three numbers (red, green, blue), got {found}"
        if not all(value > 0 for value in self.image_std):
            yield f"image_std must be positive, got {self.image_std}"
        tokens = [self.soft_token_placeholder, self.start_of_image_token, self.end_of_image_token]
        if len(set(tokens)) != 3 or min(tokens) < 0:
            yield (
                "soft_token_placeholder, start_of_image_token and end_of_image_token must be three "
                f"different token ids, got {tokens}"
            )

    @property
    def grid_side(self) -> int:
        """Patches along one side of an image."""
        return self.image_height // self.patch_size[0]

    @property
    def tokens_per_side(self) -> int:
        """Pooled vectors along one side of an image."""
        return math.isqrt(self.num_mm_tokens_per_image)

    def _grid_problems(self) -> Iterator[str]:
        if self.image_height % self.patch_size[0]:
            yield (
                f"image_height ({self.image_height}) must be a multiple of patch_size "
                f"({self.patch_size[0]})"
            )
        side = self.tokens_per_side
        if side * side != self.num_mm_tokens_per_image:
            yield f"num_mm_tokens_per_image must be a square, got {self.num_mm_tokens_per_image}"
        elif self.grid_side % side or self.grid_side == 0:
            yield (
                f"{self.grid_side} patches along a side cannot be pooled to {side}: "
                "image_height / patch_size must be a multiple of the square root of "
                "num_mm_tokens_per_image"
            )
