"""Optimizers and learning-rate schedules by name.

The tables say which settings each one reads. A setting that the chosen one
does not read is an error: a weight decay that Adam ignores looks like a weight
decay that does not help.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import optax

from tunix.utils import config as config_lib

Number = TypeVar("Number", int, float)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerOptions(config_lib.Config):
    """The block ``optimizer_config``. Unset means the default of the tables below."""

    opt_type: str = "adamw"
    """``adam``, ``adamw``, ``lion`` or ``sgd``."""

    learning_rate: float | None = None
    """The highest learning rate of the schedule; 1e-5 when neither it nor ``peak_value`` is set."""

    schedule_type: str = "constant_schedule"
    """``constant_schedule``, ``warmup_constant_schedule``, ``warmup_linear_decay_schedule`` or
    ``warmup_cosine_decay_schedule``."""

    value: float | None = None
    """Another name of ``learning_rate`` for ``constant_schedule``."""

    peak_value: float | None = None
    """Another name of ``learning_rate`` for the schedules that rise to a peak."""

    init_value: float | None = None
    """Where a warm-up starts; 0 when unset."""

    end_value: float | None = None
    """Where a decay ends; 0 when unset."""

    warmup_steps: int | None = None
    """Steps from ``init_value`` to the peak."""

    warmup_ratio: float | None = None
    """The same as a fraction of all steps."""

    decay_steps: int | None = None
    """Steps until ``end_value``, warm-up included; all steps of the run when unset."""

    b1: float | None = None
    """Decay of the first moment; 0.9 when unset."""

    b2: float | None = None
    """Decay of the second moment; 0.99 when unset."""

    eps: float | None = None
    """Added to the root of the second moment; 1e-8 when unset."""

    momentum: float | None = None
    """Momentum of ``sgd``; none when unset."""

    weight_decay: float | None = None
    """Decoupled weight decay; 0 when unset."""

    max_grad_norm: float | None = None
    """The gradient is scaled down to this norm; not at all when unset."""

    def problems(self) -> Iterator[str]:
        """Yield settings that nothing reads, contradict each other or lie outside their range."""
        yield from super().problems()
        if self.opt_type not in OPTIMIZERS:
            hint = config_lib.did_you_mean(self.opt_type, OPTIMIZERS)
            yield f"opt_type {self.opt_type!r} is not one of {sorted(OPTIMIZERS)}{hint}"
        elif unread := self._unread(_OPTIMIZER_FIELDS, OPTIMIZERS[self.opt_type].reads):
            yield f"opt_type {self.opt_type!r} does not read {unread}; remove"
        if self.schedule_type not in SCHEDULES:
            hint = config_lib.did_you_mean(self.schedule_type, SCHEDULES)
            yield f"schedule_type {self.schedule_type!r} is not one of {sorted(SCHEDULES)}{hint}"
        elif unread := self._unread(_SCHEDULE_FIELDS, SCHEDULES[self.schedule_type].reads):
            yield f"schedule_type {self.schedule_type!r} does not read {unread}; remove"
        given = {v for v in (self.learning_rate, self.value, self.peak_value) if v is not None}
        if len(given) > 1:
            yield f"learning_rate, value and peak_value mean the same but differ: {sorted(given)}"
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            yield "warmup_steps and warmup_ratio say the same thing twice; give one"
        if self.init_value is not None and self.warmup_steps is None and self.warmup_ratio is None:
            yield "init_value is where a warm-up starts: give warmup_steps or warmup_ratio with it"
        if self.decay_steps is not None and self.decay_steps <= (self.warmup_steps or 0):
            yield (
                f"decay_steps {self.decay_steps} counts the warm-up, so it must be larger than "
                f"warmup_steps {self.warmup_steps}"
            )
        if self.warmup_ratio is not None and not 0.0 <= self.warmup_ratio <= 1.0:
            yield f"warmup_ratio must lie in [0, 1], got {self.warmup_ratio}"
        for name in ("b1", "b2", "momentum"):
            if (moment := getattr(self, name)) is not None and not 0.0 <= moment < 1.0:
                yield f"{name} must lie in [0, 1), got {moment}"
        for name in (*_RATES, "warmup_steps", "weight_decay"):
            if (number := getattr(self, name)) is not None and number < 0:
                yield f"{name} must not be negative, got {number}"
        for name in ("eps", "max_grad_norm", "decay_steps"):
            if (number := getattr(self, name)) is not None and number <= 0:
                yield f"{name} must be positive, got {number}"

    @property
    def peak(self) -> float:
        """The highest learning rate."""
        given = (v for v in (self.learning_rate, self.value, self.peak_value) if v is not None)
        return next(given, 1e-5)

    def _unread(self, fields: tuple[str, ...], reads: tuple[str, ...]) -> list[str]:
        return [f for f in fields if getattr(self, f) is not None and f not in reads]


_RATES = ("learning_rate", "value", "peak_value", "init_value", "end_value")
_OPTIMIZER_FIELDS = ("b1", "b2", "eps", "momentum", "weight_decay")
_SCHEDULE_FIELDS = (*_RATES[1:], "warmup_steps", "warmup_ratio", "decay_steps")


def _or(value: Number | None, default: Number) -> Number:
    return default if value is None else value


def _adam(o: OptimizerOptions, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adam(rate, b1=_or(o.b1, 0.9), b2=_or(o.b2, 0.99), eps=_or(o.eps, 1e-8))


def _adamw(o: OptimizerOptions, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        rate,
        b1=_or(o.b1, 0.9),
        b2=_or(o.b2, 0.99),
        eps=_or(o.eps, 1e-8),
        weight_decay=_or(o.weight_decay, 0.0),
    )


def _lion(o: OptimizerOptions, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.lion(
        rate, b1=_or(o.b1, 0.9), b2=_or(o.b2, 0.99), weight_decay=_or(o.weight_decay, 0.0)
    )


def _sgd(o: OptimizerOptions, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum=o.momentum)


@dataclasses.dataclass(frozen=True)
class _Optimizer:
    make: Callable[[OptimizerOptions, optax.Schedule], optax.GradientTransformation]
    reads: tuple[str, ...]


OPTIMIZERS: Mapping[str, _Optimizer] = {
    "adam": _Optimizer(_adam, ("b1", "b2", "eps")),
    "adamw": _Optimizer(_adamw, ("b1", "b2", "eps", "weight_decay")),
    "lion": _Optimizer(_lion, ("b1", "b2", "weight_decay")),
    "sgd": _Optimizer(_sgd, ("momentum",)),
}


def _warmup_steps(o: OptimizerOptions, total_steps: int) -> int:
    if o.warmup_ratio is not None:
        return round(o.warmup_ratio * total_steps)
    return _or(o.warmup_steps, 0)


def _warm(o: OptimizerOptions, total_steps: int, after: optax.Schedule) -> optax.Schedule:
    """Return a linear warm-up followed by ``after``."""
    steps = _warmup_steps(o, total_steps)
    if steps == 0:
        return after
    warmup = optax.linear_schedule(_or(o.init_value, 0.0), o.peak, steps)
    return optax.join_schedules([warmup, after], [steps])


def _decay_steps(o: OptimizerOptions, total_steps: int) -> int:
    return max(_or(o.decay_steps, total_steps) - _warmup_steps(o, total_steps), 1)


def _constant(o: OptimizerOptions, total_steps: int) -> optax.Schedule:
    del total_steps
    return optax.constant_schedule(o.peak)


def _warmup_constant(o: OptimizerOptions, total_steps: int) -> optax.Schedule:
    return _warm(o, total_steps, optax.constant_schedule(o.peak))


def _linear(o: OptimizerOptions, total_steps: int) -> optax.Schedule:
    steps = _decay_steps(o, total_steps)
    return _warm(o, total_steps, optax.linear_schedule(o.peak, _or(o.end_value, 0.0), steps))


def _cosine(o: OptimizerOptions, total_steps: int) -> optax.Schedule:
    floor = _or(o.end_value, 0.0) / o.peak if o.peak else 0.0
    decay = optax.cosine_decay_schedule(o.peak, _decay_steps(o, total_steps), alpha=floor)
    return _warm(o, total_steps, decay)


@dataclasses.dataclass(frozen=True)
class _Schedule:
    make: Callable[[OptimizerOptions, int], optax.Schedule]
    reads: tuple[str, ...]


_WARMUP = ("peak_value", "init_value", "warmup_steps", "warmup_ratio")

SCHEDULES: Mapping[str, _Schedule] = {
    "constant_schedule": _Schedule(_constant, ("value",)),
    "warmup_constant_schedule": _Schedule(_warmup_constant, _WARMUP),
    "warmup_linear_decay_schedule": _Schedule(_linear, (*_WARMUP, "end_value", "decay_steps")),
    "warmup_cosine_decay_schedule": _Schedule(_cosine, (*_WARMUP, "end_value", "decay_steps")),
}


def make_schedule(options: OptimizerOptions, total_steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the number of updates done."""
    return SCHEDULES[options.schedule_type].make(options, total_steps)


def make_optimizer(options: OptimizerOptions, total_steps: int) -> optax.GradientTransformation:
    """Return the optimizer, gradient clipping first where asked for."""
    optimizer = OPTIMIZERS[options.opt_type].make(options, make_schedule(options, total_steps))
    if options.max_grad_norm is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(options.max_grad_norm), optimizer)
