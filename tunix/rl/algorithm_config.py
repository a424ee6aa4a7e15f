"""Settings that every policy-gradient algorithm shares, and how names become functions.

A field that names a function takes the function itself as well; the table that
resolves the name also validates and documents it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from tunix.rl import advantages, aggregation, losses
from tunix.utils import config as config_lib

FnT = TypeVar("FnT", bound=Callable)


def resolve(chosen: str | FnT, table: Mapping[str, FnT]) -> FnT:
    """Return the function that ``chosen`` names, or ``chosen`` if it is one."""
    return table[chosen] if isinstance(chosen, str) else chosen


def choice_problems(field: str, chosen: object, table: Mapping[str, object]) -> Iterator[str]:
    """Yield a sentence if ``chosen`` is neither a name in ``table`` nor callable."""
    if isinstance(chosen, str) and chosen not in table:
        hint = config_lib.did_you_mean(chosen, table)
        yield f"{field} {chosen!r} is not one of {sorted(table)}{hint}"
    elif not isinstance(chosen, str) and not callable(chosen):
        yield f"{field} must be one of {sorted(table)} or a function, got {chosen!r}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlgorithmConfig(config_lib.Config):
    """How rewards become advantages and advantages a loss."""

    advantage_estimator: str | advantages.AdvantageFn = "grpo"
    """A name in ``ADVANTAGE_ESTIMATORS`` or a function of ``[P, G]`` rewards."""

    policy_loss_fn: str | losses.PolicyLossFn = "grpo"
    """A name in ``POLICY_LOSSES`` or a function like ``losses.clipped_surrogate``."""

    loss_agg_mode: str | aggregation.Aggregation = "sequence-mean-token-mean"
    """A name in ``AGGREGATIONS`` or a function like those: what every token weighs."""

    reward_weights: Sequence[float] | None = None
    """One factor per reward function; ``None`` weighs all alike."""

    mask_truncated: bool = False
    """Whether completions that were cut off are left out of the loss (they still count in
    their group's baseline)."""

    log_entropy: bool = False
    """Whether to compute and log the policy's entropy, at some cost."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        yield from choice_problems(
            "advantage_estimator", self.advantage_estimator, advantages.ADVANTAGE_ESTIMATORS
        )
        yield from choice_problems("policy_loss_fn", self.policy_loss_fn, losses.POLICY_LOSSES)
        yield from choice_problems("loss_agg_mode", self.loss_agg_mode, aggregation.AGGREGATIONS)

    @property
    def advantage_fn(self) -> advantages.AdvantageFn:
        """The advantage estimator as a function."""
        return resolve(self.advantage_estimator, advantages.ADVANTAGE_ESTIMATORS)

    @property
    def policy_loss(self) -> losses.PolicyLossFn:
        """The policy loss as a function."""
        return resolve(self.policy_loss_fn, losses.POLICY_LOSSES)

    @property
    def aggregate(self) -> aggregation.Aggregation:
        """The aggregation as a function."""
        return resolve(self.loss_agg_mode, aggregation.AGGREGATIONS)
