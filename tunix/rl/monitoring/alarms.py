"""Alarms: what usually goes wrong in reinforcement learning, noticed while it goes wrong.

Metrics are compared as means over windows of rollouts: the first ones, and the last ones.
"""

import collections
import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tunix.utils import config as config_lib
from tunix.utils import json_lines

_LOG = logging.getLogger(__name__)

Metrics = Mapping[str, float]

LIMITS = ("dead_groups", "truncated", "mismatch")
"""Alarms about the mean over a window; others compare with the first rollouts, and a reward
function that fails is told of at once."""

RISE = 0.25
"""By how much of its standard deviation at first the reward has risen when it counts as risen."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlarmConfig(config_lib.Config):
    """When to sound an alarm; ``None`` never does."""

    window: int = 10
    """Rollouts whose metrics are averaged."""

    dead_groups: float | None = 0.9
    """Share of groups without a signal."""

    truncated: float | None = 0.5
    """Share of completions that are cut off."""

    mismatch_kl: float | None = 0.01
    """KL divergence between what the sampler and the trainer make of the same tokens."""

    entropy: float | None = 0.1
    """Share of the entropy at first below which it has collapsed; needs ``log_entropy``."""

    length_factor: float | None = 2.0
    """Factor by which completions have become longer, or shorter, while the reward rose."""

    reward_drop: float | None = 0.2
    """Share of its mean at first that one reward function has lost while their sum rose."""

    reward_failed: float | None = 1.0
    """Share of the completions of one rollout for which a reward function failed."""

    def problems(self) -> Iterator[str]:
        """Yield numbers out of range."""
        yield from super().problems()
        if self.window < 1:
            yield f"window must be at least 1, got {self.window}"
        for name in ("dead_groups", "truncated", "entropy", "reward_drop", "reward_failed"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value <= 1.0:
                yield f"{name} is a share in (0, 1], got {value}"
        if self.mismatch_kl is not None and not self.mismatch_kl > 0.0:
            yield f"mismatch_kl must be positive, got {self.mismatch_kl}"
        if self.length_factor is not None and not self.length_factor > 1.0:
            yield f"length_factor must be above 1, got {self.length_factor}"


def conditions(
    first: Sequence[Metrics], last: Sequence[Metrics], config: AlarmConfig
) -> dict[str, str]:
    """Return what is wrong now: a sentence by the name of the alarm.

    Args:
        first: Metrics of the first rollouts of the run; empty as long as they are the last ones.
        last: Those of the last rollouts.
        config: The limits.
    """
    return dict([*_limit_conditions(last, config), *_drift_conditions(first, last, config)])


def _limit_conditions(last: Sequence[Metrics], config: AlarmConfig) -> Iterator[tuple[str, str]]:
    dead, truncated = _mean(last, "dead_groups"), _mean(last, "truncated")
    mismatch = _mean(last, "mismatch_kl")
    if config.dead_groups is not None and dead >= config.dead_groups:
        yield (
            "dead_groups",
            f"{dead:.0%} of the groups teach nothing, because all of their completions earn the "
            "same; choose easier or harder prompts, more completions of each, or a finer reward",
        )
    if config.truncated is not None and truncated >= config.truncated:
        yield (
            "truncated",
            f"{truncated:.0%} of the completions are cut off; allow more tokens, or reward replies "
            "that end",
        )
    if config.mismatch_kl is not None and mismatch >= config.mismatch_kl:
        yield (
            "mismatch",
            f"sampler and trainer disagree about the policy (KL {mismatch:.2g}); compare their "
            "precision and temperature, or set rollout_correction",
        )


def _failures(newest: Metrics, config: AlarmConfig) -> Iterator[tuple[str, str]]:
    """Yield the reward functions that fail in the newest rollout."""
    for name, share in newest.items():
        function = name.removeprefix("reward_failed/")
        if config.reward_failed is None or function == name or share < config.reward_failed:
            continue
        yield (
            name,
            f"{function} failed for {share:.0%} of the completions, which get its on_error in "
            "place of a score: what is learned from them is not what it rewards; the warning "
            "before this one says why it failed",
        )


def _drift_conditions(
    first: Sequence[Metrics], last: Sequence[Metrics], config: AlarmConfig
) -> Iterator[tuple[str, str]]:
    if not first:
        return
    entropy = _mean(first, "entropy"), _mean(last, "entropy")
    if (
        config.entropy is not None
        and entropy[0] > 0.0
        and entropy[1] <= config.entropy * entropy[0]
    ):
        yield (
            "entropy",
            f"the policy's entropy has collapsed from {entropy[0]:.3g} to {entropy[1]:.3g} nats a "
            "token: it has stopped to try; raise beta or entropy_coef, or lower the learning rate",
        )
    reward = _mean(first, "reward"), _mean(last, "reward")
    if not reward[1] > reward[0] + RISE * _mean(first, "reward_std"):
        return
    rise = f"the reward rose from {reward[0]:.3g} to {reward[1]:.3g}"
    length = _mean(first, "completion_length"), _mean(last, "completion_length")
    if config.length_factor is not None:
        factor = max(length[1] / length[0], length[0] / length[1])
        if factor >= config.length_factor:
            yield (
                "length_drift",
                f"{rise} while completions went from {length[0]:.4g} to {length[1]:.4g} tokens; "
                "read some: length may be what is rewarded",
            )
    if config.reward_drop is None:
        return
    for name in last[-1]:
        if not name.startswith("reward/"):
            continue
        one = _mean(first, name), _mean(last, name)
        if one[0] - one[1] > config.reward_drop * abs(one[0]):
            yield (
                f"reward_drift/{name.removeprefix('reward/')}",
                f"{rise} while {name.removeprefix('reward/')} fell from {one[0]:.3g} to "
                f"{one[1]:.3g}; read some completions, and weigh the functions anew",
            )


def _mean(rows: Sequence[Metrics], name: str) -> float:
    """Return the mean of a metric over the rollouts that have it; NaN, which no limit meets."""
    values = [row[name] for row in rows if name in row]
    return float(np.mean(values)) if values else float("nan")


class AlarmWatch:
    """Sounds every alarm once when its condition begins, and again if it comes back.

    Args:
        config: The limits; ``None`` watches nothing.
        directory: Where ``alarms.jsonl`` is written; ``None`` only logs.
    """

    def __init__(self, config: AlarmConfig | None, directory: pathlib.Path | None):
        self._config = config
        self._path = None if directory is None else directory / "alarms.jsonl"
        window = 1 if config is None else config.window
        self._first: list[Metrics] = []
        self._last: collections.deque[Metrics] = collections.deque(maxlen=window)
        self._seen = 0
        self._active: frozenset[str] = frozenset()

    def observe(self, metrics: Metrics, *, step: int) -> list[str]:
        """Return the sentences of the alarms that begin with this rollout, and publish them."""
        begun = self._begun(metrics)
        for name, sentence in begun.items():
            _LOG.warning("alarm at step %d, %s: %s", step, name, sentence)
        if begun and self._path is not None:
            json_lines.append(
                self._path,
                [{"step": step, "alarm": n, "message": text} for n, text in begun.items()],
            )
        return list(begun.values())

    def resume(self, rows: Sequence[Metrics], *, step: int) -> None:
        """Go to where a run was after these rollouts, without sounding anything again.

        Args:
            rows: Metrics of all its rollouts until now.
            step: The step it continues behind; alarms of later ones are set aside.
        """
        for row in rows:
            self._begun(row)
        if self._path is not None:
            json_lines.truncate_after(self._path, step)

    def _begun(self, metrics: Metrics) -> dict[str, str]:
        if self._config is None:
            return {}
        window = self._config.window
        if self._seen < window:
            self._first.append(metrics)
        self._last.append(metrics)
        self._seen += 1
        found = dict(_failures(metrics, self._config))
        if self._seen >= window:
            first = self._first if self._seen >= 2 * window else []
            found |= conditions(first, list(self._last), self._config)
        # A limit that the newest rollout meets no more is on its way out, not in.
        newest = dict(_limit_conditions([metrics], self._config))
        is_over = {name for name in LIMITS if name not in newest}
        begun = {n: text for n, text in found.items() if n not in self._active | is_over}
        self._active = frozenset(n for n in found if n in self._active or n in begun)
        return begun


def logged_rollouts(path: pathlib.Path, prefix: str) -> list[dict[str, float]]:
    """Return the metrics of the rollouts in a ``metrics.jsonl``, by their bare names.

    Args:
        path: The file; it may be missing.
        prefix: What stands before the name of a metric, such as ``train/``.
    """
    rows = [
        {name.removeprefix(prefix): float(x) for name, x in row.items() if name.startswith(prefix)}
        for row in json_lines.read(path)
    ]
    return [row for row in rows if "reward" in row]
