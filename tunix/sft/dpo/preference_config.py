"""Settings that training on preferences adds to those of the loop."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from tunix.sft import training_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceTrainingConfig(training_config.TrainingConfig):
    """What every preference objective has."""

    max_prompt_length: int | None = None
    """Tokens that a prompt of a batch of strings may have; ``None`` for any number."""

    max_response_length: int | None = None
    """The same for each answer, with its EOS."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        for name in ("max_prompt_length", "max_response_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name} must be at least 1 or None, got {value}"


def default_of(config_class: type, name: str) -> Any:
    """Return the default of a field."""
    return next(f.default for f in dataclasses.fields(config_class) if f.name == name)


def positive_problems(**values: float) -> Iterator[str]:
    """Yield one sentence per value that is not above 0."""
    for name, value in values.items():
        if not value > 0:
            yield f"{name} must be positive, got {value}"


def smoothing_problems(label_smoothing: float) -> Iterator[str]:
    """Yield a sentence if the label smoothing is no probability below one half."""
    if not 0.0 <= label_smoothing < 0.5:
        yield f"label_smoothing must lie in [0, 0.5), got {label_smoothing}"
