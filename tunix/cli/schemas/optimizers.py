"""Optimizers and learning-rate schedules by name.

The tables say which settings each one reads. A setting that the chosen one
does not read is an error: a weight decay that Adam ignores looks like a weight
decay that does not help.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from tunix.cli.schemas import schedules
from tunix.utils import config as config_lib

SCHEDULES = schedules.SCHEDULES


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerOptions(config_lib.Config):
    """The block ``optimizer_config``. Unset means the default of the tables below."""

    opt_type: str = "adamw"
    """``adafactor``, ``adam``, ``adamw``, ``lion``, ``muon`` or ``sgd``."""

    learning_rate: float | None = None
    """The highest learning rate of the schedule; 1e-5 when neither it nor ``peak_value`` is set."""

    schedule_type: str = "constant_schedule"
    """``constant_schedule``, ``warmup_constant_schedule``, ``warmup_linear_decay_schedule``,
    ``warmup_cosine_decay_schedule`` or ``warmup_stable_decay_schedule``."""

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

    cooldown_ratio: float | None = None
    """Fraction of all steps in which ``warmup_stable_decay_schedule`` decays; 0.1 when unset."""

    b1: float | None = None
    """Decay of the first moment; 0.9 when unset."""

    b2: float | None = None
    """Decay of the second moment; 0.99 when unset."""

    eps: float | None = None
    """Added to the root of the second moment; 1e-8 when unset."""

    momentum: float | None = None
    """Momentum of ``sgd`` (none when unset), ``adafactor`` (none) and ``muon`` (0.95)."""

    weight_decay: float | None = None
    """Decoupled weight decay; 0 when unset."""

    decay_mask: Literal["matrices", "all"] | None = None
    """What decays: everything but scales of norms and biases when unset, or ``all``."""

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
        for name in ("warmup_ratio", "cooldown_ratio"):
            if (share := getattr(self, name)) is not None and not 0.0 <= share <= 1.0:
                yield f"{name} must lie in [0, 1], got {share}"
        if self.decay_mask is not None and not self.weight_decay:
            yield "decay_mask says what weight_decay decays: give weight_decay with it"
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
_OPTIMIZER_FIELDS = ("b1", "b2", "eps", "momentum", "weight_decay", "decay_mask")
_SCHEDULE_FIELDS = (*_RATES[1:], "warmup_steps", "warmup_ratio", "decay_steps", "cooldown_ratio")
_UNDECAYED = ("scale", "b", "bias", "lora_magnitude")
"""Last part of the names of norm scales, biases and lengths of columns."""
_NOT_HIDDEN = ("embed_tokens", "lm_head")
"""Matrices that Muon leaves to Adam: rows of a vocabulary are no linear map."""

_or = schedules.either


def _adam(o: OptimizerOptions, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    return optax.adam(rate, b1=_or(o.b1, 0.9), b2=_or(o.b2, 0.99), eps=_or(o.eps, 1e-8))


def _adamw(o: OptimizerOptions, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    return optax.adamw(
        rate,
        b1=_or(o.b1, 0.9),
        b2=_or(o.b2, 0.99),
        eps=_or(o.eps, 1e-8),
        weight_decay=_or(o.weight_decay, 0.0),
        mask=_decays(o),
    )


def _adafactor(o: OptimizerOptions, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Return Adafactor with the learning rate and weight decay of AdamW.

    Optax's own rate is relative to the size of each parameter, and its decay is not scaled by it.
    """
    direction = optax.adafactor(None, multiply_by_parameter_scale=False, momentum=o.momentum)
    # What comes out of it points downhill already, and so must the decay.
    decay = optax.add_decayed_weights(-_or(o.weight_decay, 0.0), mask=_decays(o))
    return optax.chain(direction, decay, optax.scale_by_learning_rate(rate, flip_sign=False))


def _lion(o: OptimizerOptions, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    return optax.lion(
        rate,
        b1=_or(o.b1, 0.9),
        b2=_or(o.b2, 0.99),
        weight_decay=_or(o.weight_decay, 0.0),
        mask=_decays(o),
    )


def _muon(o: OptimizerOptions, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Return Muon for the matrices of the layers, and Adam (Nesterov's) for the rest.

    Updates of both have the size of Adam's (arXiv:2502.16982), so one learning rate fits both.
    Only what Muon updates decays.
    """
    return optax.contrib.muon(
        rate,
        beta=_or(o.momentum, 0.95),
        eps=_or(o.eps, 1e-8),
        weight_decay=_or(o.weight_decay, 0.0),
        adam_b1=_or(o.b1, 0.9),
        adam_b2=_or(o.b2, 0.99),
        muon_weight_dimension_numbers=_muon_axes,
        consistent_rms=0.2,
    )


def _sgd(o: OptimizerOptions, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum=o.momentum)


def _decays(o: OptimizerOptions) -> Any:
    """Return the mask of what decays, a function of the parameters."""
    if o.decay_mask == "all":
        return None
    return lambda params: jax.tree.map_with_path(
        lambda path, _: _last_names(path)[-1] not in _UNDECAYED, params
    )


def _muon_axes(params: Any) -> Any:
    """Return which axes of each parameter make its matrix; ``None`` for Adam."""

    def axes(path: tuple[Any, ...], x: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        names = _last_names(path)
        if x.ndim < 2 or names[-1] in _UNDECAYED or set(names) & set(_NOT_HIDDEN):
            return None
        # Axes before the last two stack layers or experts.
        return optax.contrib.MuonDimensionNumbers(x.ndim - 2, x.ndim - 1)

    return jax.tree.map_with_path(axes, params)


def _last_names(path: tuple[Any, ...]) -> list[str]:
    """Return the parts of a parameter's dotted name; an empty one if it has no name."""
    return jax.tree_util.keystr(path, simple=True, separator=".").split(".")


@dataclasses.dataclass(frozen=True)
class _Optimizer:
    make: Callable[[OptimizerOptions, optax.ScalarOrSchedule], optax.GradientTransformation]
    reads: tuple[str, ...]


OPTIMIZERS: Mapping[str, _Optimizer] = {
    "adafactor": _Optimizer(_adafactor, ("momentum", "weight_decay", "decay_mask")),
    "adam": _Optimizer(_adam, ("b1", "b2", "eps")),
    "adamw": _Optimizer(_adamw, ("b1", "b2", "eps", "weight_decay", "decay_mask")),
    "lion": _Optimizer(_lion, ("b1", "b2", "weight_decay", "decay_mask")),
    "muon": _Optimizer(_muon, ("b1", "b2", "eps", "momentum", "weight_decay")),
    "sgd": _Optimizer(_sgd, ("momentum",)),
}


def make_schedule(options: OptimizerOptions, total_steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the number of updates done."""
    return SCHEDULES[options.schedule_type].make(options, total_steps)


def make_optimizer(options: OptimizerOptions, total_steps: int) -> optax.GradientTransformation:
    """Return the optimizer, gradient clipping first where asked for.

    Its state tells the learning rate of the last update, which trainers log.
    """
    make = OPTIMIZERS[options.opt_type].make

    def with_rate(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        return make(options, learning_rate)

    # Without a dtype, the rate would be rounded to that of the parameters.
    injected = optax.inject_hyperparams(with_rate, hyperparam_dtype=jnp.float32)
    optimizer = injected(learning_rate=make_schedule(options, total_steps))
    if options.max_grad_norm is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(options.max_grad_norm), optimizer)
