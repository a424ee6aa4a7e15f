"""Settings of DPO with all its losses, and of ORPO."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

from tunix.sft.dpo import pair_objective, preference_config
from tunix.utils import config as config_lib

ALGORITHMS = ("dpo", "orpo")
LOSS_TYPES = tuple(
    name
    for name, loss in pair_objective.ALL_LOSSES.items()
    if loss.needs_reference or name == "sft"
)
"""Losses that can be mixed; those without a reference have trainers of their own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPOConfig(config_lib.Config):
    """How pairs of answers are compared with a reference."""

    loss_type: str | tuple[str, ...] = "sigmoid"
    """A loss of pairs (``LOSS_TYPES``), or several whose weighted values are added."""

    loss_weights: tuple[float, ...] | None = None
    """One per loss of ``loss_type``; each 1 when unset."""

    beta: float = 0.1
    """How strongly the policy is held to the reference."""

    label_smoothing: float = 0.0
    """Probability that a label is wrong, for the losses that know of it."""

    rpo_alpha: float | None = None
    """Weight of the chosen answer's negative log-likelihood per token; none when unset."""

    discopop_tau: float = 0.05
    """Temperature of DiscoPOP's gate."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        yield from preference_config.positive_problems(
            beta=self.beta, discopop_tau=self.discopop_tau
        )
        yield from preference_config.smoothing_problems(self.label_smoothing)
        if self.rpo_alpha is not None and not self.rpo_alpha > 0:
            yield f"rpo_alpha must be positive or None, got {self.rpo_alpha}"
        unknown = [name for name in self.loss_types if name not in LOSS_TYPES]
        for name in unknown:
            hint = config_lib.did_you_mean(name, LOSS_TYPES)
            yield f"loss_type {name!r} is not one of {sorted(LOSS_TYPES)}{hint}"
        if not self.loss_types:
            yield "loss_type names no loss"
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_types):
            yield (
                f"loss_weights has {len(self.loss_weights)} entries, loss_type "
                f"{len(self.loss_types)}"
            )
        if not unknown:
            losses = [pair_objective.ALL_LOSSES[name] for name in self.loss_types]
            read = {option for loss in losses for option in loss.options}
            read |= {"beta"}  # the scale of the rewards that metrics show
            yield from self._unread({*self.settings} - read, f"loss_type {self.loss_type!r}")
        if "exo_pair" in self.loss_types and self.label_smoothing == 0.0:
            yield "loss_type 'exo_pair' is infinite without label_smoothing; set it, e.g. to 1e-3"

    @property
    def loss_types(self) -> tuple[str, ...]:
        """The names of the losses."""
        return (self.loss_type,) if isinstance(self.loss_type, str) else tuple(self.loss_type)

    @property
    def settings(self) -> Mapping[str, float]:
        """What losses may be called with."""
        return {
            "beta": self.beta,
            "label_smoothing": self.label_smoothing,
            "discopop_tau": self.discopop_tau,
        }

    def _unread(self, names: Iterable[str], owner: str) -> Iterator[str]:
        """Yield a sentence per setting that differs from its default, where nothing reads it."""
        for name in sorted(names):
            if getattr(self, name) != preference_config.default_of(type(self), name):
                yield f"{name} is not read by {owner}; remove it"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ORPOConfig(config_lib.Config):
    """How pairs of answers are compared by their odds, without a reference."""

    lambda_orpo: float = 0.1
    """Weight of ORPO's odds ratio term."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        yield from preference_config.positive_problems(lambda_orpo=self.lambda_orpo)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPOTrainingConfig(DPOConfig, ORPOConfig, preference_config.PreferenceTrainingConfig):
    """How to learn from pairs of answers."""

    algorithm: str = "dpo"
    """``dpo`` compares with a reference, by the losses of ``loss_type``; ``orpo`` needs none."""

    offload_reference: bool = False
    """Keep ``ref_model`` in host memory, and on the devices only while a batch needs it."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        if self.algorithm not in ALGORITHMS:
            hint = config_lib.did_you_mean(self.algorithm, ALGORITHMS)
            yield f"algorithm {self.algorithm!r} is not one of {list(ALGORITHMS)}{hint}"
        elif self.algorithm == "orpo":
            unread = {"loss_type", "loss_weights", "rpo_alpha", "offload_reference"}
            yield from self._unread(unread | {*self.settings}, "algorithm 'orpo'")
        else:
            yield from self._unread(["lambda_orpo"], f"loss_type {self.loss_type!r}")

    @property
    def terms(self) -> tuple[pair_objective.Term, ...]:
        """The losses with their weights and settings."""
        if self.algorithm == "orpo":
            return (
                pair_objective.Term("sft", 1.0, {}),
                pair_objective.Term("orpo", self.lambda_orpo, {}),
            )
        weights = self.loss_weights or (1.0,) * len(self.loss_types)
        terms = [
            pair_objective.Term(name, weight, self.settings)
            for name, weight in zip(self.loss_types, weights, strict=True)
        ]
        if self.rpo_alpha is not None:
            terms.append(pair_objective.Term("sft", self.rpo_alpha, self.settings))
        return tuple(terms)
