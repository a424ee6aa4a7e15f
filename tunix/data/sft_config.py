"""Settings of the data of supervised tuning."""

import dataclasses
from collections.abc import Iterator
from typing import Literal, get_args

from tunix.data import batching, tokenize
from tunix.data import translation as translation_lib
from tunix.utils import config

Format = Literal["auto", "messages", "prompt_completion", "text"]
TooLong = Literal["error", "drop", "keep_start", "keep_end"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSize(config.Config):
    """How large a batch is."""

    batch_size: int = 8
    """Rows per batch."""

    max_target_length: int = 256
    """Tokens a row holds."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        for name, least in {"max_target_length": 2, "batch_size": 1}.items():
            if vars(self)[name] < least:
                yield f"{name} must be at least {least}, got {vars(self)[name]}"
        yield from config.batch_problems(
            {"batch_size": self.batch_size}, {"max_target_length": self.max_target_length}
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowConfig(config.Config):
    """How rows become tokens, and those of several rows a batch."""

    format: Format = "auto"
    """``messages``, ``prompt_completion``, ``text``, or ``auto``: by the columns."""

    translation: translation_lib.TranslationConfig | None = None
    """How pairs of texts become prompts with completions; unset where rows are no pairs."""

    train_on: tokenize.TrainOn = "replies"
    """Whether prompts are trained, too (``everything``). ``text`` always is."""

    too_long: TooLong = "error"
    """What happens to a longer example. ``keep_end`` keeps BOS and the last tokens."""

    untrainable: Literal["error", "drop"] = "error"
    """What happens to an example without a token to train, perhaps after truncation."""

    packing: bool = False
    """Whether several examples may share a row; they do not see each other."""

    packing_window: int = 512
    """How many consecutive examples are packed together."""

    pad_to: batching.PadTo = "longest"
    """Pad rows to the longest example of the data, rounded up to 64 tokens, or to
    ``max_target_length`` (``max``): one program. ``bucket`` pads each batch to the next power of
    two, for lengths of a long tail that are not packed: a program for each."""

    last_batch: Literal["drop", "keep"] = "keep"
    """What happens to a short last batch; kept, it is filled with empty rows."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        choices = {
            "format": get_args(Format),
            "train_on": get_args(tokenize.TrainOn),
            "too_long": get_args(TooLong),
            "untrainable": ("error", "drop"),
            "pad_to": get_args(batching.PadTo),
            "last_batch": ("drop", "keep"),
        }
        yield from config.choice_problems(self, choices)
        yield from config.below_one(self, "packing_window")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftDataConfig(BatchSize, RowConfig):
    """How rows become batches."""

    shuffle_seed: int | None = 0
    """``None`` keeps the order of the data."""

    num_epochs: int | None = 1
    """``None`` repeats the data for ever."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        if self.num_epochs is not None and self.num_epochs < 1:
            yield f"num_epochs must be at least 1 or null, got {self.num_epochs}"
        if self.shuffle_seed is not None and self.shuffle_seed < 0:
            yield f"shuffle_seed must not be negative, got {self.shuffle_seed}"
