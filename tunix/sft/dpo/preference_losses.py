"""Losses of pairs of answers, as pure functions: one loss per pair, no means.

A loss sees what the policy and a reference say of both answers to a prompt: sums of token
log-probabilities and lengths, nothing else. Symbols below: ``y_w`` is the chosen and ``y_l`` the
rejected answer, ``r(y) = log pi(y|x) - log pi_ref(y|x)`` an answer's log-ratio, ``|y|`` its trained
tokens, ``d = r(y_w) - r(y_l)``, and ``s`` the sigmoid. Axis: ``P`` pairs.

Losses that compare a pair with the others of its step are in :mod:`tunix.sft.dpo.aot`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Pairs(NamedTuple):
    """What models say of chosen and rejected answers."""

    chosen: Float[Array, " P"]
    """Log-probability of the whole answer under the policy: a sum over its trained tokens."""
    rejected: Float[Array, " P"]
    ref_chosen: Float[Array, " P"]
    """The same under the reference, a constant; 0 where the loss needs no reference."""
    ref_rejected: Float[Array, " P"]
    chosen_length: Float[Array, " P"]
    """Trained tokens of the answer, at least 1."""
    rejected_length: Float[Array, " P"]

    @property
    def chosen_ratio(self) -> Float[Array, " P"]:
        """Log-ratio of the chosen answer."""
        return self.chosen - self.ref_chosen

    @property
    def rejected_ratio(self) -> Float[Array, " P"]:
        """Log-ratio of the rejected answer."""
        return self.rejected - self.ref_rejected

    @property
    def margin(self) -> Float[Array, " P"]:
        """How much more the policy prefers the chosen answer than the reference does."""
        return self.chosen_ratio - self.rejected_ratio

    @property
    def chosen_mean(self) -> Float[Array, " P"]:
        """Log-probability of the chosen answer per token."""
        return self.chosen / self.chosen_length

    @property
    def rejected_mean(self) -> Float[Array, " P"]:
        """Log-probability of the rejected answer per token."""
        return self.rejected / self.rejected_length

    @property
    def mean_margin(self) -> Float[Array, " P"]:
        """The margin of log-ratios per token."""
        return self.chosen_ratio / self.chosen_length - self.rejected_ratio / self.rejected_length


def logistic(logits: Float[Array, " P"], label_smoothing: float = 0.0) -> Float[Array, " P"]:
    """Return ``-(1 - e) log s(x) - e log s(-x)`` with ``e`` the label smoothing."""
    right, wrong = -jax.nn.log_sigmoid(logits), -jax.nn.log_sigmoid(-logits)
    return (1.0 - label_smoothing) * right + label_smoothing * wrong


def sigmoid(pairs: Pairs, *, beta: float, label_smoothing: float = 0.0) -> Float[Array, " P"]:
    """DPO, ``-log s(beta d)`` (Rafailov et al., 2023, arXiv:2305.18290, eq. 7).

    With label smoothing it is conservative DPO: labels are flipped with that probability
    (Mitchell, 2023, "A note on DPO with noisy preferences", eq. 3).
    """
    return logistic(beta * pairs.margin, label_smoothing)


def sigmoid_norm(pairs: Pairs, *, beta: float, label_smoothing: float = 0.0) -> Float[Array, " P"]:
    """Length-normalised DPO: the log-ratios are per token (Tülu 3, arXiv:2411.15124, eq. 6)."""
    return logistic(beta * pairs.mean_margin, label_smoothing)


def robust(pairs: Pairs, *, beta: float, label_smoothing: float = 0.0) -> Float[Array, " P"]:
    """Return the unbiased DPO loss under labels flipped with probability ``e < 1/2``.

    ``(-(1 - e) log s(beta d) + e log s(-beta d)) / (1 - 2 e)`` (Chowdhury et al., 2024,
    arXiv:2403.00409, eq. 12). Without smoothing it is DPO.
    """
    right, wrong = logistic(beta * pairs.margin), logistic(-beta * pairs.margin)
    return ((1.0 - label_smoothing) * right - label_smoothing * wrong) / (1.0 - 2 * label_smoothing)


def hinge(pairs: Pairs, *, beta: float) -> Float[Array, " P"]:
    """SLiC as normalised by RSO, ``max(0, 1 - beta d)`` (arXiv:2305.10425; 2309.06657, eq. 11)."""
    return jax.nn.relu(1.0 - beta * pairs.margin)


def ipo(pairs: Pairs, *, beta: float) -> Float[Array, " P"]:
    """IPO, ``(m - 1 / (2 beta))^2`` (Azar et al., 2023, arXiv:2310.12036, eq. 17).

    ``m = r(y_w) / |y_w| - r(y_l) / |y_l|``: per token, as TRL does and as its authors confirm
    that the paper's experiments did; the printed equation has sums.
    """
    return (pairs.mean_margin - 1.0 / (2.0 * beta)) ** 2


def exo_pair(pairs: Pairs, *, beta: float, label_smoothing: float) -> Float[Array, " P"]:
    """EXO of two answers, the reverse KL (Ji et al., 2024, arXiv:2402.00856, eq. 16).

    ``KL(q || p)`` with ``q = (s(beta d), s(-beta d))`` and ``p = (1 - e, e)``; ``e > 0``.
    """
    logits = beta * pairs.margin
    right = jax.nn.sigmoid(logits) * (jax.nn.log_sigmoid(logits) - jnp.log1p(-label_smoothing))
    wrong = jax.nn.sigmoid(-logits) * (jax.nn.log_sigmoid(-logits) - jnp.log(label_smoothing))
    return right + wrong


def nca_pair(pairs: Pairs, *, beta: float) -> Float[Array, " P"]:
    """NCA of two answers (Chen et al., 2024, arXiv:2402.05369, eq. 11 with K = 2).

    ``-log s(beta r(y_w)) - (log s(-beta r(y_w)) + log s(-beta r(y_l))) / 2``.
    """
    chosen, rejected = beta * pairs.chosen_ratio, beta * pairs.rejected_ratio
    return logistic(chosen) + 0.5 * logistic(-chosen) + 0.5 * logistic(-rejected)


def bco_pair(pairs: Pairs, *, beta: float) -> Float[Array, " P"]:
    """BCO of two answers, a classifier of each (Jung et al., 2024, arXiv:2404.04656, eq. 11).

    ``-log s(beta r(y_w) - t) - log s(-(beta r(y_l) - t))`` with the reward shift ``t = 0``, as TRL
    has it: a running mean of rewards would make the loss of a pair depend on its neighbours.
    """
    return logistic(beta * pairs.chosen_ratio) + logistic(-beta * pairs.rejected_ratio)


def sppo_hard(pairs: Pairs, *, beta: float) -> Float[Array, " P"]:
    """SPPO where the chosen answer always wins (Wu et al., 2024, arXiv:2405.00675, eq. 4.7).

    ``(r(y_w) - 1 / (2 beta))^2 + (r(y_l) + 1 / (2 beta))^2``.
    """
    target = 0.5 / beta
    return (pairs.chosen_ratio - target) ** 2 + (pairs.rejected_ratio + target) ** 2


def apo_zero(pairs: Pairs, *, beta: float) -> Float[Array, " P"]:
    """APO-zero: the chosen answer up, the rejected one down (arXiv:2408.06266, eq. 7).

    ``1 - s(beta r(y_w)) + s(beta r(y_l))``, for answers better than what the model writes.
    """
    chosen = jax.nn.sigmoid(-beta * pairs.chosen_ratio)
    return chosen + jax.nn.sigmoid(beta * pairs.rejected_ratio)


def apo_down(pairs: Pairs, *, beta: float) -> Float[Array, " P"]:
    """APO-down: both answers down, the rejected one more (arXiv:2408.06266, eq. 8).

    ``s(beta r(y_w)) + 1 - s(beta d)``, for answers worse than what the model writes.
    """
    return jax.nn.sigmoid(beta * pairs.chosen_ratio) + jax.nn.sigmoid(-beta * pairs.margin)


def discopop(pairs: Pairs, *, beta: float, discopop_tau: float) -> Float[Array, " P"]:
    """DiscoPOP, log-ratio modulated (Lu et al., 2024, arXiv:2406.08414, eq. 5).

    ``(1 - g) * -log s(beta d) + g * exp(-beta d)`` with the gate ``g = s(beta d / tau)``.
    """
    logits = beta * pairs.margin
    gate = jax.nn.sigmoid(logits / discopop_tau)
    return logistic(logits) * (1.0 - gate) + jnp.exp(-logits) * gate


def sft(pairs: Pairs) -> Float[Array, " P"]:
    """Return the chosen answer's negative log-likelihood per token, ``-log pi(y_w|x) / |y_w|``.

    The extra term of RPO (Pang et al., 2024, arXiv:2404.19733, eq. 1), CPO and ORPO. Every pair
    counts alike; TRL averages over the tokens of a batch, where long answers count more.
    """
    return -pairs.chosen_mean


def simpo(
    pairs: Pairs, *, beta: float, simpo_gamma: float, label_smoothing: float = 0.0
) -> Float[Array, " P"]:
    """SimPO: per-token log-probabilities, a target margin, no reference.

    ``-log s(beta (log pi(y_w|x) / |y_w| - log pi(y_l|x) / |y_l|) - gamma)`` (Meng et al., 2024,
    arXiv:2405.14734, eq. 6).
    """
    logits = beta * (pairs.chosen_mean - pairs.rejected_mean) - simpo_gamma
    return logistic(logits, label_smoothing)


def cpo(pairs: Pairs, *, beta: float, label_smoothing: float = 0.0) -> Float[Array, " P"]:
    """CPO's preference term: DPO with a uniform reference (Xu et al., 2024, arXiv:2401.08417).

    ``-log s(beta (log pi(y_w|x) - log pi(y_l|x)))``, eq. 3.
    """
    return logistic(beta * (pairs.chosen - pairs.rejected), label_smoothing)


def orpo(pairs: Pairs) -> Float[Array, " P"]:
    """ORPO's odds ratio term (Hong et al., 2024, arXiv:2403.07691, eqs. 4 and 7).

    ``-log s(log odds(y_w) - log odds(y_l))`` with ``odds = p / (1 - p)`` and ``p`` the geometric
    mean of the answer's token probabilities, ``log p = log pi(y|x) / |y|``.
    """
    return logistic(_log_odds(pairs.chosen_mean) - _log_odds(pairs.rejected_mean))


def bradley_terry(
    chosen: Float[Array, " P"], rejected: Float[Array, " P"], margin: Float[Array, " P"]
) -> Float[Array, " P"]:
    """Return the loss of a reward model, ``-log s(R(y_w) - R(y_l) - m)``.

    Bradley and Terry (1952) as in Ouyang et al. (2022, arXiv:2203.02155, eq. 1); the margin ``m``
    is Llama 2's (arXiv:2307.09288, eq. 2), 0 for none.

    Args:
        chosen: Reward of the chosen answer.
        rejected: Reward of the rejected answer.
        margin: By how much the chosen answer should lead.
    """
    return logistic(chosen - rejected - margin)


def _log_odds(log_p: Float[Array, " P"]) -> Float[Array, " P"]:
    """Return ``log(p / (1 - p))`` of a negative ``log p``, exact at both ends."""
    near_one = log_p > -0.6931472
    # Each branch gets an argument that is safe for it: 0 * inf in a gradient is NaN.
    large = jnp.log(-jnp.expm1(jnp.where(near_one, log_p, -1.0)))
    small = jnp.log1p(-jnp.exp(jnp.where(near_one, -1.0, log_p)))
    return log_p - jnp.where(near_one, large, small)


@dataclasses.dataclass(frozen=True)
class PairLoss:
    """A loss by name, and what it reads."""

    fn: Callable[..., Float[Array, " P"]]
    options: tuple[str, ...] = ("beta",)
    """Settings it takes as keyword arguments."""
    needs_reference: bool = True


PAIR_LOSSES: Mapping[str, PairLoss] = {
    "sigmoid": PairLoss(sigmoid, ("beta", "label_smoothing")),
    "sigmoid_norm": PairLoss(sigmoid_norm, ("beta", "label_smoothing")),
    "robust": PairLoss(robust, ("beta", "label_smoothing")),
    "hinge": PairLoss(hinge),
    "ipo": PairLoss(ipo),
    "exo_pair": PairLoss(exo_pair, ("beta", "label_smoothing")),
    "nca_pair": PairLoss(nca_pair),
    "bco_pair": PairLoss(bco_pair),
    "sppo_hard": PairLoss(sppo_hard),
    "apo_zero": PairLoss(apo_zero),
    "apo_down": PairLoss(apo_down),
    "discopop": PairLoss(discopop, ("beta", "discopop_tau")),
    "sft": PairLoss(sft, (), needs_reference=False),
    "simpo": PairLoss(simpo, ("beta", "simpo_gamma", "label_smoothing"), needs_reference=False),
    "cpo": PairLoss(cpo, ("beta", "label_smoothing"), needs_reference=False),
    "orpo": PairLoss(orpo, (), needs_reference=False),
}
