"""How one request is sampled and when it ends."""

import dataclasses
from collections.abc import Iterator

from tunix.utils import config

MAX_STOP_TOKENS = 32
"""How many ids can end one request: a fixed number, so that no set of them recompiles anything."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams(config.Config):
    """Settings of a request; none of them recompiles anything."""

    max_new_tokens: int
    """A request that has not stopped by then ends with ``finish_reason="length"``."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""

    top_k: int | None = None
    """Keep the k most likely tokens."""

    top_p: float | None = None
    """Keep the smallest set of most likely tokens with at least this mass."""

    min_p: float | None = None
    """Keep tokens at least this fraction as likely as the most likely one."""

    repetition_penalty: float = 1.0
    """Above 1 makes tokens of the prompt and the reply less likely to come again."""

    stop_token_ids: tuple[int, ...] = ()
    """Any of these ends the request, and is its last token."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        if self.max_new_tokens < 1:
            yield f"max_new_tokens must be at least 1, got {self.max_new_tokens}"
        if not 0.0 <= self.temperature < float("inf"):
            yield f"temperature must be 0 (greedy) or a positive number, got {self.temperature}"
        if self.top_k is not None and self.top_k < 1:
            yield f"top_k must be at least 1, or None to keep all tokens, got {self.top_k}"
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            yield f"top_p must lie in (0, 1], or be None to keep all tokens, got {self.top_p}"
        if self.min_p is not None and not 0.0 <= self.min_p <= 1.0:
            yield f"min_p must lie in [0, 1], or be None to keep all tokens, got {self.min_p}"
        if not self.repetition_penalty > 0.0:
            yield f"repetition_penalty must be positive, got {self.repetition_penalty}"
        if len(self.stop_token_ids) > MAX_STOP_TOKENS:
            yield (
                f"stop_token_ids holds {len(self.stop_token_ids)} ids, "
                f"at most {MAX_STOP_TOKENS} can end a request"
            )
        if negative := [i for i in self.stop_token_ids if i < 0]:
            yield f"stop_token_ids must not be negative, got {negative}"
