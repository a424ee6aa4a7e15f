"""Settings that every policy-gradient algorithm shares, and how names become functions.

A field that names a function takes the function itself as well; the table that
resolves the name also validates and documents it.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tunix.rl import abstract_reward_manager, function_registry
from tunix.rl.objectives import advantages, aggregation, losses
from tunix.rl.objectives import rollout_correction as rollout_correction_lib
from tunix.utils import calls
from tunix.utils import config as config_lib

_CALLS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "advantage_estimator": (["rewards"], []),
    "token_advantage_estimator": (["rewards", "values"], ["gamma", "gae_lambda"]),
    "policy_loss_fn": (["log_ratio", "advantages", "mask"], ["clip_low", "clip_high"]),
    "loss_algo": (["logps", "old_logps", "mask"], ["sequence"]),
    "loss_agg_mode": (["lengths"], ["max_length"]),
    "kl_estimator": (["logps", "ref_logps"], []),
    "rollout_correction": (["log_ratio", "mask"], ["sequence", "limit"]),
    "reward_manager": (["reward_fns", "reward_weights"], []),
    "rollout_engine": ([], ["model", "tokenizer", "cache_size", "max_slots"]),
}
"""Arguments by place and by name that the functions of each category are called with."""


def choice_problems(
    field: str, chosen: Any, category: str | None = None, *, also: Iterable[str] = ()
) -> Iterator[str]:
    """Yield a sentence if ``chosen`` names no function of its category, or cannot be called as one.

    Args:
        field: The setting.
        chosen: Its value.
        category: Of the registry, if it is not called like the setting.
        also: Names of arguments that the other settings add to those of the category.
    """
    registry, category = function_registry.default_registry, category or field
    names = registry.list_functions(category)
    if isinstance(chosen, str) and chosen not in names:
        yield f"{field} {chosen!r} is not one of {names}{_hint(chosen, category)}"
    elif not isinstance(chosen, str) and not callable(chosen):
        yield f"{field} must be one of {names} or a function, got {chosen!r}"
    else:
        fn = registry.resolve(category, chosen)
        by_place, by_name = _CALLS[category]
        if category == "advantage_estimator" and advantages.wants_lengths(fn):
            by_name = ["lengths"]
        if (problem := calls.fault(fn, by_place, dict.fromkeys([*by_name, *also]))) is not None:
            yield f"{field} {problem}"


def _hint(chosen: str, category: str) -> str:
    """Return which name may have been meant, or how a name comes to be one."""
    registry = function_registry.default_registry
    elsewhere = [c for c in registry.list_categories() if chosen in registry.list_functions(c)]
    near = config_lib.did_you_mean(chosen, registry.list_functions(category))
    if elsewhere:
        return f" ({chosen!r} is registered as {' and '.join(elsewhere)}; wanted is {category})"
    return near or f" (register a function of your own as {category!r} first)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlgorithmConfig(config_lib.Config):
    """How rewards become advantages and advantages a loss."""

    num_generations: int = 1
    """Completions sampled per prompt; G in the paper."""

    num_iterations: int = 1
    """How often every rollout is trained on; μ in the paper."""

    off_policy_steps: int = 0
    """How many steps before the newest weights each rollout is sampled with: always so many, once
    there are. Sampling, scoring and training then overlap; 0 does one after the other."""

    partial_rollout_tokens: int | None = None
    """Tokens that a completion is sampled at a time; when enough prompts are finished for a step,
    those that are not go on in later steps, under newer weights. ``None`` finishes all at once."""

    beta: float = 0.04
    """Weight of the KL penalty to the reference policy; 0 needs no reference at all."""

    epsilon: float = 0.2
    """How far the importance ratio may fall below 1; ε in the paper."""

    epsilon_high: float | None = None
    """How far it may rise above 1; ``None`` means as far as ``epsilon``."""

    epsilon_c: float | None = None
    """Dual clip: a token of negative advantage A costs at most ``-epsilon_c * A``; above 1."""

    entropy_coef: float | None = None
    """Weight of the policy's entropy, which is rewarded; ``None`` computes none."""

    advantage_estimator: str | Callable[..., Any] = "grpo"
    """A name in ``ADVANTAGE_ESTIMATORS`` or a function of ``[P, G]`` rewards."""

    policy_loss_fn: str | losses.PolicyLossFn = "grpo"
    """A name in ``POLICY_LOSSES`` or a function like ``losses.clipped_surrogate``."""

    loss_algo: str | losses.ImportanceFn = "grpo"
    """Which importance ratio: ``grpo`` per token, ``gspo`` or ``gspo-token`` per sequence, or a
    function."""

    loss_agg_mode: str | aggregation.Aggregation = "sequence-mean-token-mean"
    """A name in ``AGGREGATIONS`` or a function like those: what every token weighs."""

    rollout_correction: str | rollout_correction_lib.CorrectionFn | None = None
    """A name in ``ROLLOUT_CORRECTIONS`` or a function like those: weighs tokens by how likely
    the trainer finds what the sampler drew. With several updates per rollout the trainer then
    computes the old log-probabilities itself, at the price of a forward pass."""

    rollout_correction_limit: float = 2.0
    """The largest such weight, see ``rollout_correction``."""

    reward_manager: str | Callable[..., abstract_reward_manager.AbstractRewardManager] = (
        "sequence-level"
    )
    """Runs the reward functions and makes one reward of what they say: a name in
    ``REWARD_MANAGERS``, a class like those, or any ``fn(reward_fns, weights)`` that makes one."""

    reward_weights: Sequence[float] | None = None
    """One factor per reward function; ``None`` weighs all alike."""

    mask_truncated: bool = False
    """Whether completions that were cut off are left out of the loss (they still count in
    their group's baseline)."""

    log_token_ratio: bool = False
    """Whether ``completions.jsonl`` tells how far each step moved the policy on every completion
    (``log_ratio``: mean log-ratio per token to the policy that sampled it), at the price of a
    forward pass."""

    log_entropy: bool = False
    """Whether to compute and log the policy's entropy, at some cost."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        for name in ("num_generations", "num_iterations"):
            if getattr(self, name) < 1:
                yield f"{name} must be at least 1, got {getattr(self, name)}"
        if self.off_policy_steps < 0:
            yield f"off_policy_steps must not be negative, got {self.off_policy_steps}"
        if self.partial_rollout_tokens is not None and self.partial_rollout_tokens < 1:
            yield (
                "partial_rollout_tokens must be at least 1, or None to finish all completions at "
                f"once, got {self.partial_rollout_tokens}"
            )
        if not self.beta >= 0.0:
            yield f"beta must not be negative, got {self.beta}"
        yield from self._clip_problems()
        if self.entropy_coef is not None and not self.entropy_coef >= 0.0:
            yield f"entropy_coef must not be negative, got {self.entropy_coef}"
        for name in ("loss_algo", "loss_agg_mode", "reward_manager"):
            yield from choice_problems(name, getattr(self, name))
        yield from choice_problems("policy_loss_fn", self.policy_loss_fn, also=self.clip_options)
        if isinstance(self.reward_manager, abstract_reward_manager.AbstractRewardManager):
            yield "reward_manager must be a class, which the learner makes one of; got an object"
        yield from self._estimator_problems()
        if self.rollout_correction is not None:
            yield from choice_problems("rollout_correction", self.rollout_correction)
        if not self.rollout_correction_limit >= 1.0:
            yield (
                "rollout_correction_limit must be at least 1, the weight of a token on which "
                f"sampler and trainer agree, got {self.rollout_correction_limit}"
            )

    def _estimator_problems(self) -> Iterator[str]:
        yield from choice_problems("advantage_estimator", self.advantage_estimator)

    def _clip_problems(self) -> Iterator[str]:
        if not 0.0 < self.epsilon <= 1.0:
            yield f"epsilon must lie in (0, 1], got {self.epsilon}"
        if self.epsilon_high is not None and not self.epsilon_high > 0.0:
            yield f"epsilon_high must be positive, got {self.epsilon_high}"
        if self.epsilon_c is None:
            return
        if not self.epsilon_c > 1.0:
            yield f"epsilon_c must be above 1, got {self.epsilon_c}"
        if self.policy_loss_fn == "cispo":
            yield "epsilon_c is not read by policy_loss_fn 'cispo'; leave it out"

    @property
    def is_off_policy(self) -> bool:
        """Whether the policy that samples may be older than the one that is trained."""
        return self.off_policy_steps > 0 or self.partial_rollout_tokens is not None

    @property
    def clip_range(self) -> tuple[float, float]:
        """How far the ratio may fall below and rise above 1."""
        return self.epsilon, self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def clip_options(self) -> dict[str, float]:
        """What the policy loss is called with."""
        low, high = self.clip_range
        dual = {} if self.epsilon_c is None else {"clip_dual": self.epsilon_c}
        return {"clip_low": low, "clip_high": high, **dual}

    @property
    def advantage_fn(self) -> advantages.AdvantageFn:
        """The advantage estimator as a function."""
        return resolve("advantage_estimator", self.advantage_estimator)

    @property
    def policy_loss(self) -> losses.PolicyLossFn:
        """The policy loss as a function."""
        return resolve("policy_loss_fn", self.policy_loss_fn)

    @property
    def importance_fn(self) -> losses.ImportanceFn:
        """The importance ratio as a function."""
        return resolve("loss_algo", self.loss_algo)

    @property
    def aggregate(self) -> aggregation.Aggregation:
        """The aggregation as a function."""
        return resolve("loss_agg_mode", self.loss_agg_mode)

    @property
    def correction_fn(self) -> rollout_correction_lib.CorrectionFn | None:
        """The rollout correction as a function."""
        chosen = self.rollout_correction
        return None if chosen is None else resolve("rollout_correction", chosen)

    @property
    def reward_manager_class(self) -> Callable[..., abstract_reward_manager.AbstractRewardManager]:
        """What the reward functions are run with."""
        return resolve("reward_manager", self.reward_manager)

    @property
    def is_silent_at_zero(self) -> bool:
        """Whether a token of advantage 0 is known to have no gradient from the policy loss."""
        # A user's own loss may have a gradient of its own, whatever it is called.
        return self.entropy_coef is None and self.policy_loss in losses.POLICY_LOSSES.values()


def resolve(category: str, chosen: str | Callable[..., Any]) -> Any:
    """Return the function that ``chosen`` names, or ``chosen`` if it is one."""
    return function_registry.default_registry.resolve(category, chosen)
