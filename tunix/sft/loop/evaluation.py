"""Evaluation: sums and weights over the whole set, divided once."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

from tunix.sft import inflight_throttler, loss_output
from tunix.sft.loop import train_context, train_data

EvalMetricsFn = Callable[[Any], Mapping[str, float]]
"""``fn(trainer)`` measures what else there is at an evaluation: values by name."""


class EvalData:
    """A data set that is read from where it stands now at every evaluation.

    Raises:
        TypeError: If it is an iterator that cannot be read twice.
    """

    def __init__(self, dataset: Iterable[Any]):
        if iter(dataset) is dataset and not isinstance(dataset, train_data.StatefulIterator):
            raise TypeError(
                f"eval_ds is a {type(dataset).__name__} that can be read only once; pass a "
                "list, or an iterator with get_state and set_state"
            )
        self._dataset = dataset
        self._begun: tuple[list[Any], Iterator[Any]] | None = None

    def __iter__(self) -> Iterator[Any]:
        """Return an iterator over all batches."""
        if self._begun is None:
            return rewinding(self._dataset)
        (first, rest), self._begun = self._begun, None
        return itertools.chain(first, rest)

    def peek(self) -> list[Any]:
        """Return the first batch, if there is one; the next iterator begins with this very one."""
        rest = iter(self)
        self._begun = list(itertools.islice(rest, 1)), rest
        return self._begun[0]


def rewinding(dataset: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches of ``dataset``, and put an iterator that can go back where it was."""
    iterator = iter(dataset)
    if iterator is not dataset or not isinstance(dataset, train_data.StatefulIterator):
        yield from iterator
        return
    start = dataset.get_state()
    try:
        yield from iterator
    finally:
        dataset.set_state(start)


def compile_ahead(trainer: train_context.TrainContext, batches: EvalData) -> None:
    """Compute the first batch, so that nothing has to be compiled once training runs."""
    if trainer.data_hooks is not None:  # they give each batch once
        return
    for batch in batches.peek():
        output = trainer.eval_output(batch)
        if trainer.training_hooks is not None:
            loss_output.safe_ratio(output.loss_sum, output.weight_sum)


def evaluate(trainer: train_context.TrainContext, batches: Iterable[Any]) -> dict[str, float]:
    """Return the mean loss and metrics over all batches, and what else the trainer measures.

    Every token counts by its weight, wherever it is: a short last batch counts less than a full
    one. Sums are added in double precision.

    Raises:
        ValueError: If there is no batch, nothing in them has any weight, or two metrics have the
            same name.
    """
    throttler = inflight_throttler.InflightThrottler(trainer.config.max_inflight_computations)
    outputs = []
    for batch in _batches(trainer, batches):
        if trainer.training_hooks is not None:
            trainer.training_hooks.on_eval_step_start(trainer)
        throttler.wait_for_next()
        output = trainer.eval_output(batch)
        throttler.add_computation(output)
        outputs.append(output)
        if trainer.training_hooks is not None:
            loss: Any = loss_output.safe_ratio(output.loss_sum, output.weight_sum)
            trainer.training_hooks.on_eval_step_end(trainer, loss)
    means = _mean(jax.device_get(outputs))
    if trainer.eval_metrics is None:
        return means
    more = trainer.eval_metrics(trainer)
    if twice := sorted(means.keys() & more.keys()):
        raise ValueError(f"with_eval_metrics measures {twice}, which evaluations have anyway")
    return {**means, **more}


def _batches(trainer: train_context.TrainContext, batches: Iterable[Any]) -> Iterator[Any]:
    hooks = trainer.data_hooks
    if hooks is None:
        yield from rewinding(batches)
        return
    while (batch := hooks.load_next_eval_batch(trainer)) is not None:
        yield batch


def _mean(outputs: list[loss_output.LossOutput]) -> dict[str, float]:
    if not outputs:
        raise ValueError("the evaluation set has no batch; pass a non-empty eval_ds or none at all")
    means = {"loss": _ratio([(o.loss_sum, o.weight_sum) for o in outputs])}
    for name in outputs[0].metrics:
        means[name] = _ratio([o.metrics[name] for o in outputs])
    for name in outputs[0].maxima:
        means[name] = max(float(o.maxima[name]) for o in outputs)
    if math.fsum(float(o.weight_sum) for o in outputs) == 0:
        raise ValueError(
            "nothing in the evaluation set has loss weight; check the masks of eval_ds"
        )
    return means


def _ratio(pairs: list[Any]) -> float:
    total = math.fsum(float(total) for total, _ in pairs)
    weight = math.fsum(float(weight) for _, weight in pairs)
    return total / weight if weight else 0.0
