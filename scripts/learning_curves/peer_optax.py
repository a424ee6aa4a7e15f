"""AdamW and its learning rates, for the two sides that take an Optax optimizer."""

from typing import Any

import optax


def schedule(job: dict[str, Any]) -> optax.Schedule:
    """Return the recipe's schedule: linear from 0 to the rate, then constant."""
    warmup = optax.linear_schedule(0.0, job["learning_rate"], job["warmup_steps"])
    constant = optax.constant_schedule(job["learning_rate"])
    return optax.join_schedules([warmup, constant], [job["warmup_steps"]])


def rates(job: dict[str, Any]) -> list[float]:
    """Return the learning rate of every update; the first is 0."""
    return [float(schedule(job)(i)) for i in range(job["num_rollouts"])]


def optimizer(job: dict[str, Any]) -> optax.GradientTransformation:
    """Return AdamW as the job says, without decay and without clipping of gradients."""
    return optax.adamw(schedule(job), b1=job["b1"], b2=job["b2"], eps=job["eps"], weight_decay=0.0)
