"""Metrics of the machine, one set per step: speed, waiting, compilations, memory.

Their names start with ``system/``: unlike everything else in the log they differ when a run is
repeated.
"""

import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from tunix.models import flops
from tunix.models.transformer import decoder as decoder_lib
from tunix.perf import compile_counter, machine, span
from tunix.sft import utils as sft_utils

PREFIX = "system/"

_LOG = logging.getLogger(__name__)

_MAX_WARNINGS = 3
"""About steps that compile: the metrics tell of all of them."""


class SystemMetrics:
    """Reads the machine after every step; used as a context manager around the steps.

    Args:
        model: The model that is trained; operations are counted for a ``Decoder`` only.
        timer: Its span ``data`` is the time that steps waited for batches; not told without.
    """

    def __init__(self, model: nnx.Module, timer: span.SpanTimer | None):
        self._config = model.config if isinstance(model, decoder_lib.Decoder) else None
        self._is_frozen = sft_utils.is_lora_enabled(model)
        self._timer = timer
        self._compiles = compile_counter.CompileCounter()
        self._seen = (0, 0.0, 0.0)
        self._steps = self._warnings = 0

    def __enter__(self) -> "SystemMetrics":
        self._compiles.__enter__()
        self.skip()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._compiles.__exit__(*exception)

    def skip(self) -> None:
        """Leave what happened since the last step out of the next step's numbers."""
        self._seen = (*self.compiled(), self._data_seconds())

    def compiled(self) -> tuple[int, float]:
        """Return how many programs were compiled so far, and the seconds that took."""
        return self._compiles.count, self._compiles.seconds

    def read(
        self, compiled: tuple[int, float], tokens: int, row_length: int, seconds: float
    ) -> dict[str, float]:
        """Return the metrics of a step.

        Args:
            compiled: What :meth:`compiled` said when it was dispatched.
            tokens: Tokens in it, padding excluded where the batch says; 0 if unknown.
            row_length: Tokens of a row, from which the operations of attention are estimated.
            seconds: How long it took.
        """
        count, compiling, waiting = self._seen
        self._seen = (*compiled, self._data_seconds())
        self._steps += 1
        if compiled[0] > count and self._steps > 1 and self._warnings < _MAX_WARNINGS:
            self._warnings += 1
            _LOG.warning(
                "a step after the first one compiled %s, which takes time; batches of one shape "
                "need no new programs",
                ", ".join(self._compiles.names[count : compiled[0]]),
            )
        values = {
            "compiles": float(compiled[0] - count),
            "compiles_total": float(compiled[0]),
            "compile_sec": compiled[1] - compiling,
            "host_memory_gb": machine.host_bytes() / 1e9,
        }
        if self._timer is not None:
            values["data_wait_sec"] = self._seen[2] - waiting
        if (used := machine.device_bytes()) is not None:
            values["device_memory_gb"] = used / 1e9
        if tokens:
            values["tokens_per_second"] = tokens / seconds
            values |= self._speed(tokens, row_length, seconds)
        return {f"{PREFIX}{name}": value for name, value in values.items()}

    def _speed(self, tokens: int, row_length: int, seconds: float) -> dict[str, float]:
        if self._config is None:
            return {}
        per_token = flops.training_flops_per_token(
            self._config, row_length / 2, is_frozen=self._is_frozen
        )
        rate = tokens * per_token / seconds
        values = {"tflops_per_second": rate / 1e12}
        peak = machine.peak_flops(jax.devices()[0].device_kind)
        if peak is not None:
            values["mfu"] = rate / (peak * jax.device_count())
        return values

    def _data_seconds(self) -> float:
        return 0.0 if self._timer is None else self._timer.totals().get("data", 0.0)


def count_tokens(micro_batch: Mapping[str, Any]) -> tuple[int, int]:
    """Return the tokens of a batch, padding excluded where its segments say, and a row's length.

    ``(0, 0)`` for a batch that is not made of token rows.
    """
    rows = micro_batch.get("input_tokens")
    if rows is None or np.ndim(rows) != 2:
        return 0, 0
    segments = micro_batch.get("segment_ids")
    # Only on the host: counting on the device would wait for it.
    is_on_host = isinstance(segments, np.ndarray)
    tokens = int(np.count_nonzero(segments)) if is_on_host else int(np.size(rows))
    return tokens, int(np.shape(rows)[1])
