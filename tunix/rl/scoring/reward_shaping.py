"""Rewards that depend on the length of a completion in tokens, not on its text."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from tunix.utils import config as config_lib

OVERLONG = "overlong"
"""Name of the shaping reward in metrics and logs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverlongBuffer(config_lib.Config):
    """How completions that come close to the longest length are punished; lengths in tokens."""

    enable: bool = True
    """False punishes nothing."""

    overlong_buffer_length: int | None = None
    """How many tokens before the longest length the punishment begins; a fifth of that length
    when unset."""

    overlong_buffer_penalty: float = 1.0
    """What a completion of the longest length loses."""

    max_response_length: int | None = None
    """The longest length; that of the rollout when unset."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        for name in ("overlong_buffer_length", "max_response_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name} must be at least 1, got {value}"
        penalty = self.overlong_buffer_penalty
        if not penalty >= 0.0:
            yield f"overlong_buffer_penalty must not be negative, got {penalty}"
        both = self.overlong_buffer_length, self.max_response_length
        if both[0] is not None and both[1] is not None and both[0] > both[1]:
            yield (
                f"overlong_buffer_length {both[0]} is more than max_response_length {both[1]}; "
                "both count tokens"
            )

    def problems_in(self, longest: int) -> Iterator[str]:
        """Yield what is wrong with these settings for completions of at most ``longest`` tokens."""
        end, buffer = self._end_and_buffer(longest)
        if self.enable and end - buffer >= longest:
            yield (
                f"overlong_buffer punishes nothing: it begins after {end - buffer} tokens, "
                f"max_response_length {end} less overlong_buffer_length {buffer}, and completions "
                f"end at {longest}; leave both out to punish the last fifth"
            )

    def penalty(self, lengths: Int[np.ndarray, " B"], longest: int) -> Float[np.ndarray, " B"]:
        """Return the (negative) reward of completions of these lengths.

        Args:
            lengths: Tokens of each completion.
            longest: What the rollout allows.
        """
        end, buffer = self._end_and_buffer(longest)
        return overlong_penalty(
            lengths, longest=end, buffer=buffer, penalty=self.overlong_buffer_penalty
        )

    def _end_and_buffer(self, longest: int) -> tuple[int, int]:
        end = self.max_response_length or longest
        return end, self.overlong_buffer_length or max(end // 5, 1)


def overlong_penalty(
    lengths: Int[np.ndarray, " B"], *, longest: int, buffer: int, penalty: float = 1.0
) -> Float[np.ndarray, " B"]:
    """Return 0 for short completions, falling to ``-penalty`` at the longest length.

    ``min(0, (longest - buffer - length) / buffer)``, not below -1, times ``penalty``: the soft
    overlong punishment of DAPO (Yu et al., 2025, arXiv:2503.14476, eq. 13).

    Args:
        lengths: Tokens of each completion.
        longest: The longest length allowed, in tokens.
        buffer: Over how many tokens before it the punishment grows.
        penalty: The punishment at and beyond the longest length.
    """
    return penalty * np.clip((longest - buffer - lengths) / buffer, -1.0, 0.0)
