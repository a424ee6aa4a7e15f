"""Learning-rate schedules by name, and which settings each one reads."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import optax

Number = TypeVar("Number", int, float)


class Settings(Protocol):
    """What decides a schedule, of the settings of an optimizer."""

    @property
    def peak(self) -> float:
        """The highest rate."""
        ...

    @property
    def init_value(self) -> float | None:
        """Where a warm-up starts."""
        ...

    @property
    def end_value(self) -> float | None:
        """Where a decay ends."""
        ...

    @property
    def warmup_steps(self) -> int | None:
        """Steps of the warm-up."""
        ...

    @property
    def warmup_ratio(self) -> float | None:
        """The same as a share of all."""
        ...

    @property
    def decay_steps(self) -> int | None:
        """Steps until the end of the decay."""
        ...

    @property
    def cooldown_ratio(self) -> float | None:
        """Share of the decay behind a stable phase."""
        ...


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How to make a schedule, and the settings that decide it."""

    make: Callable[[Settings, int], optax.Schedule]
    """``(options, total_steps) -> schedule``."""
    reads: tuple[str, ...]


def either(value: Number | None, default: Number) -> Number:
    """Return ``value``, or ``default`` where it is unset."""
    return default if value is None else value


def warmup_steps(o: Settings, total_steps: int) -> int:
    """Return the steps until the learning rate is at its peak."""
    if o.warmup_ratio is not None:
        return round(o.warmup_ratio * total_steps)
    return either(o.warmup_steps, 0)


def _warm(o: Settings, total_steps: int, after: optax.Schedule) -> optax.Schedule:
    """Return a linear warm-up followed by ``after``."""
    steps = warmup_steps(o, total_steps)
    if steps == 0:
        return after
    warmup = optax.linear_schedule(either(o.init_value, 0.0), o.peak, steps)
    return optax.join_schedules([warmup, after], [steps])


def _decay_steps(o: Settings, total_steps: int) -> int:
    return max(either(o.decay_steps, total_steps) - warmup_steps(o, total_steps), 1)


def _constant(o: Settings, total_steps: int) -> optax.Schedule:
    del total_steps
    return optax.constant_schedule(o.peak)


def _warmup_constant(o: Settings, total_steps: int) -> optax.Schedule:
    return _warm(o, total_steps, optax.constant_schedule(o.peak))


def _linear(o: Settings, total_steps: int) -> optax.Schedule:
    steps = _decay_steps(o, total_steps)
    return _warm(o, total_steps, optax.linear_schedule(o.peak, either(o.end_value, 0.0), steps))


def _cosine(o: Settings, total_steps: int) -> optax.Schedule:
    floor = either(o.end_value, 0.0) / o.peak if o.peak else 0.0
    decay = optax.cosine_decay_schedule(o.peak, _decay_steps(o, total_steps), alpha=floor)
    return _warm(o, total_steps, decay)


def _stable(o: Settings, total_steps: int) -> optax.Schedule:
    """Return warm-up, stable phase and linear decay (MiniCPM, arXiv:2404.06395)."""
    after_warmup = _decay_steps(o, total_steps)
    share = either(o.cooldown_ratio, 0.1)
    cooldown = min(max(round(share * either(o.decay_steps, total_steps)), 1), after_warmup)
    decay = optax.linear_schedule(o.peak, either(o.end_value, 0.0), cooldown)
    stable = optax.constant_schedule(o.peak)
    return _warm(o, total_steps, optax.join_schedules([stable, decay], [after_warmup - cooldown]))


_WARMUP = ("peak_value", "init_value", "warmup_steps", "warmup_ratio")
_DECAY = (*_WARMUP, "end_value", "decay_steps")

SCHEDULES: Mapping[str, Schedule] = {
    "constant_schedule": Schedule(_constant, ("value",)),
    "warmup_constant_schedule": Schedule(_warmup_constant, _WARMUP),
    "warmup_linear_decay_schedule": Schedule(_linear, _DECAY),
    "warmup_cosine_decay_schedule": Schedule(_cosine, _DECAY),
    "warmup_stable_decay_schedule": Schedule(_stable, (*_DECAY, "cooldown_ratio")),
}
