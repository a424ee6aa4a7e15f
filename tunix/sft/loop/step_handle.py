"""One dispatched training step: its metrics while they are still being computed."""

import dataclasses
from collections.abc import Mapping

import jax


@dataclasses.dataclass(frozen=True)
class StepHandle:
    """What :meth:`PeftTrainer.step_on` returns at once, before the device is done."""

    step: int
    """Number of the optimizer step, from 1."""
    metrics: Mapping[str, jax.Array]
    """Scalars on the device; passing them on costs nothing, reading one waits for the step."""
    tokens: int = 0
    """Tokens of its batches, see :mod:`tunix.sft.metrics.system_metrics`; 0 if unknown."""
    row_length: int = 0
    """Tokens of the longest row."""

    def result(self) -> dict[str, float]:
        """Wait for the step and return its metrics as Python numbers."""
        return {name: float(value) for name, value in jax.device_get(dict(self.metrics)).items()}
