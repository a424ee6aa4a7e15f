"""Settings of preference data."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from tunix.utils import config


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceDataConfig(config.Config):
    """How rows become batches."""

    max_prompt_length: int = 512
    """Tokens of a prompt."""

    max_response_length: int = 512
    """Tokens of an answer."""

    too_long: Literal["error", "drop", "truncate"] = "error"
    """What happens to a longer row; truncation keeps the end of a prompt and the beginning of an
    answer."""

    identical: Literal["error", "drop"] = "error"
    """What happens to a pair of two equal answers, perhaps after truncation."""

    batch_size: int = 8
    """Rows per batch: of one prompt each, or of several if packed."""

    packing: bool = False
    """Whether several prompts may share a row; they do not see each other."""

    packing_window: int = 512
    """How many consecutive examples are packed together."""

    row_length: int | None = None
    """Tokens of a packed row; by default what the longest prompt with its answers needs."""

    pad_to: Literal["bucket", "max"] = "bucket"
    """Pad rows to the longest prompt with its answers, rounded up to 64 tokens, or not rounded."""

    shuffle_seed: int | None = 0
    """``None`` keeps the order of the data."""

    num_epochs: int | None = 1
    """``None`` repeats the data for ever."""

    last_batch: Literal["drop", "keep"] = "drop"
    """What happens to a short last batch; if kept, it is filled with empty rows."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        choices = {
            "too_long": ("error", "drop", "truncate"),
            "identical": ("error", "drop"),
            "pad_to": ("bucket", "max"),
            "last_batch": ("drop", "keep"),
        }
        yield from config.choice_problems(self, choices)
        counts = ("max_prompt_length", "max_response_length", "batch_size", "packing_window")
        for name in (*counts, "row_length", "num_epochs"):
            value = vars(self)[name]
            if value is not None and value < 1:
                yield f"{name} must be at least 1, got {value}"
        lengths = ("max_prompt_length", "max_response_length")
        yield from config.batch_problems(
            {"batch_size": self.batch_size},
            {name: getattr(self, name) for name in lengths}
            if self.row_length is None
            else {"row_length": self.row_length},
        )
        if self.row_length is not None and not self.packing:
            yield "row_length is the length of packed rows, and packing is off; remove it"
        if self.shuffle_seed is not None and self.shuffle_seed < 0:
            yield f"shuffle_seed must not be negative, got {self.shuffle_seed}"
