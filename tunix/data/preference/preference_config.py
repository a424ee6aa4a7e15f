"""Settings of preference data."""

import dataclasses
from collections.abc import Iterator
from typing import Literal, get_args

from tunix.data import batching
from tunix.utils import config


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSize(config.Config):
    """How large a batch is."""

    batch_size: int = 8
    """Rows per batch: of one prompt each, or of several if packed."""

    max_prompt_length: int = 512
    """Tokens of a prompt."""

    max_response_length: int = 512
    """Tokens of an answer."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        yield from config.below_one(self, "batch_size", "max_prompt_length", "max_response_length")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowConfig(config.Config):
    """How rows become tokens, and those of several rows a batch."""

    too_long: Literal["error", "drop", "truncate"] = "error"
    """What happens to a longer row; truncation keeps the end of a prompt and the beginning of an
    answer."""

    identical: Literal["error", "drop"] = "error"
    """What happens to a pair of two equal answers, perhaps after truncation."""

    packing: bool = False
    """Whether several prompts may share a row; they do not see each other."""

    packing_window: int = 512
    """How many consecutive examples are packed together."""

    row_length: int | None = None
    """Tokens of a packed row; what the longest prompt with its answers needs when unset."""

    pad_to: batching.PadTo = "longest"
    """Pad rows to the longest prompt with its answers, rounded up to 64 tokens or not (``max``):
    one program. ``bucket`` pads each batch to the next power of two, for lengths of a long tail
    that are not packed: a program for each."""

    last_batch: Literal["drop", "keep"] = "keep"
    """What happens to a short last batch; if kept, it is filled with empty rows."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        choices = {
            "too_long": ("error", "drop", "truncate"),
            "identical": ("error", "drop"),
            "pad_to": get_args(batching.PadTo),
            "last_batch": ("drop", "keep"),
        }
        yield from config.choice_problems(self, choices)
        yield from config.below_one(self, "packing_window", "row_length")
        if self.row_length is not None and not self.packing:
            yield "row_length is the length of packed rows, and packing is off; remove it"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceDataConfig(BatchSize, RowConfig):
    """How rows become batches."""

    shuffle_seed: int | None = 0
    """``None`` keeps the order of the data."""

    num_epochs: int | None = 1
    """``None`` repeats the data for ever."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        yield from config.below_one(self, "num_epochs")
        yield from config.below_one(self, "num_epochs")
        lengths = ("max_prompt_length", "max_response_length")
        yield from config.batch_problems(
            {"batch_size": self.batch_size},
            {name: getattr(self, name) for name in lengths}
            if self.row_length is None
            else {"row_length": self.row_length},
        )
        if self.shuffle_seed is not None and self.shuffle_seed < 0:
            yield f"shuffle_seed must not be negative, got {self.shuffle_seed}"
