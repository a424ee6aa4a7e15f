"""Reward functions: run them together, check what they return, add up what they say.

A reward function is ``fn(prompts, completions, **columns)`` and returns one number per
completion, or ``fn(prompt, completion, **columns)`` and returns one number; which of the two
it is, is read from the names of its arguments. ``None`` in place of a number says that the
function does not apply to this sample. ``columns`` are the columns of the data row and what
the rollout adds, see ``ROLLOUT_COLUMNS`` of :mod:`tunix.rl.collecting.prompt_batch`; with whole
batches they hold a value per completion. A function without ``**kwargs`` gets only the columns it
names.

How it is run (processes, time limits, what if it fails) says :class:`Reward`. Nothing here
knows about models.
"""

import logging
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from tunix.rl import abstract_reward_manager
from tunix.rl.scoring import reward_problems, reward_runner, reward_settings, reward_shaping
from tunix.utils import config as config_lib
from tunix.utils import daemon_threads, score_functions
from tunix.utils import problems as problems_lib

Reward = reward_settings.Reward
RewardResult = abstract_reward_manager.RewardResult
RewardFn = reward_settings.RewardFn | Reward
"""A function, or one with settings."""

_LOG = logging.getLogger(__name__)


class RewardError(problems_lib.ProblemsError):
    """One or more reward functions failed; every problem names its function and sample."""

    headline = "reward functions failed"


class RewardManager(abstract_reward_manager.AbstractRewardManager):
    """Runs reward functions concurrently and adds up their scores.

    The total of a completion is the sum of ``weight * score`` over the functions that apply to
    it; a subclass may say otherwise in :meth:`combine`. A completion to which none applies is an
    error: it has no reward, and a made-up one would be trained on.

    Args:
        reward_fns: One or several: functions, or :class:`Reward` for those with settings.
        weights: One factor per function; all 1 if not given.

    Raises:
        ConfigError: If there is no function, or not one finite weight for each.
    """

    def __init__(
        self,
        reward_fns: RewardFn | Sequence[RewardFn],
        weights: Sequence[float] | None = None,
    ):
        if isinstance(reward_fns, str):
            raise config_lib.ConfigError("rewards", [f"{reward_fns!r} is not callable"])
        given = list(reward_fns) if isinstance(reward_fns, Sequence) else [reward_fns]
        weights = [1.0] * len(given) if weights is None else list(weights)
        problems, settings = [], []
        if not given:
            problems.append("reward_fns is empty; give at least one reward function")
        for one in given:
            try:
                settings.append(one if isinstance(one, Reward) else Reward(fn=one))
            except config_lib.ConfigError as error:
                problems += error.problems
        if any(one.title == reward_shaping.OVERLONG for one in settings):
            problems.append(
                f"{reward_shaping.OVERLONG!r} is what metrics and logs call the penalty for long "
                "completions; give the function another name"
            )
        if len(weights) != len(given):
            problems.append(f"reward_weights has {len(weights)} values for {len(given)} functions")
        problems += [
            f"reward_weights must be finite, got {w}"
            for w in weights
            if not score_functions.is_score(w)
        ]
        if problems:
            raise config_lib.ConfigError("rewards", problems)
        names = reward_settings.unique_names(settings)
        runners = map(reward_runner.RewardRunner, settings)
        self._runners = dict(zip(names, runners, strict=True))
        self._weights = dict(zip(names, weights, strict=True))
        self._told: dict[str, float] = {}
        self._finalizer = weakref.finalize(self, _close_all, list(self._runners.values()))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the functions, as in metrics and logs."""
        return tuple(self._runners)

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise if a function names an argument that the data does not have.

        Raises:
            RewardError: Lists every function and argument.
        """
        problems = []
        for name, runner in self._runners.items():
            for wanted in runner.settings.required_columns:
                if wanted not in columns:
                    problems.append(
                        f"{name} needs the column {wanted!r}; there are {sorted(columns)}"
                        f"{config_lib.did_you_mean(wanted, columns)}"
                    )
        if problems:
            raise RewardError(problems)

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> RewardResult:
        """Return every function's scores for all completions.

        Args:
            prompts: Text of the prompt of every completion.
            completions: Text of every completion.
            columns: Further values by name, one per completion.

        Raises:
            RewardError: If a function fails and its settings do not say what to do, if it returns
                anything but a finite number or ``None`` per completion, or if no function
                applies to a completion.
        """
        self.check_columns(list(columns))
        samples = reward_problems.Samples(prompts=list(prompts), completions=list(completions))
        found = daemon_threads.map_all(
            lambda runner: runner.run(samples.prompts, samples.completions, columns),
            self._runners.values(),
            num_threads=len(self._runners),
        )
        outcomes = dict(zip(self._runners, found, strict=True))
        problems, causes = [], []
        for name, outcome in outcomes.items():
            raises = self._runners[name].settings.on_error == "raise"
            if failures := outcome.failures if raises else outcome.mistakes:
                causes += failures.values()
                problems += reward_problems.of_failures(name, outcome, failures, samples)
            else:
                problems += reward_problems.of_values(name, outcome.values, samples)
        if problems:
            raise RewardError(problems) from (causes[0] if causes else None)
        self._tell_of_failures(outcomes, samples)
        scores = {
            name: np.asarray(
                [np.nan if v is None else float(np.asarray(v)) for v in outcome.values]
            )
            for name, outcome in outcomes.items()
        }
        return RewardResult(
            total=self._total(scores, samples),
            per_function=scores,
            seconds={name: outcome.seconds for name, outcome in outcomes.items()},
            failed={name: len(outcome.failures) for name, outcome in outcomes.items()},
            restarts={n: o.restarts for n, o in outcomes.items() if o.restarts is not None},
        )

    def combine(self, scores: Mapping[str, Float[np.ndarray, " B"]]) -> Float[np.ndarray, " B"]:
        """Return the reward of every completion: here the weighted sum.

        Args:
            scores: What every function said, by name; NaN where it does not apply, which is not
                the case for all functions at once.
        """
        return sum(
            (self.weights[name] * np.nan_to_num(values) for name, values in scores.items()),
            start=np.zeros(()),
        )

    @property
    def weights(self) -> Mapping[str, float]:
        """The factor of every function, by name."""
        return self._weights

    def close(self) -> None:
        """End the processes of functions that run in some."""
        self._finalizer()

    def _tell_of_failures(
        self, outcomes: Mapping[str, reward_runner.Outcome], samples: reward_problems.Samples
    ) -> None:
        """Warn of a function's first failure, and whenever it begins to fail for all."""
        for name, outcome in outcomes.items():
            count, total = len(outcome.failures), len(samples.completions)
            told = self._told.get(name, 0.0)
            if count and (told == 0.0 or (count == total and told < 1.0)):
                (reason, *_) = reward_problems.of_failures(name, outcome, outcome.failures, samples)
                _LOG.warning(
                    "%s failed for %d of %d completions, which get on_error (%s) in its place: %s",
                    name,
                    count,
                    total,
                    self._runners[name].settings.on_error,
                    reason,
                )
            if count or told == 1.0:
                self._told[name] = count / total

    def _total(
        self, scores: Mapping[str, Float[np.ndarray, " B"]], samples: reward_problems.Samples
    ) -> Float[np.ndarray, " B"]:
        without = np.all([np.isnan(values) for values in scores.values()], axis=0)
        if without.any():
            i = int(np.argmax(without))
            raise RewardError(
                [
                    f"no function applies to {without.sum()} of {len(without)} completions: all "
                    f"of {list(scores)} returned None, first at {samples.describe(i)}; let one "
                    "return a number"
                ]
            )
        return require_rewards(
            self.combine(scores),
            f"{type(self).__name__}.combine",
            samples.prompts,
            samples.completions,
        )


def require_rewards(
    total: Any, owner: str, prompts: Sequence[str], completions: Sequence[str]
) -> Float[np.ndarray, " B"]:
    """Return rewards, after checking that there is a finite one for every completion.

    Raises:
        RewardError: If not; names ``owner``, which made them, and the first sample.
    """
    found = np.asarray(total, np.float64)
    if found.shape != (len(completions),):
        problem = f"{owner} returned shape {found.shape} for {len(completions)} completions"
        raise RewardError([f"{problem}; one number for each is expected"])
    # What float32 cannot hold would be infinite as soon as it is an advantage.
    is_usable = np.abs(found) <= np.finfo(np.float32).max
    if (faults := np.flatnonzero(~is_usable)).size:
        i = int(faults[0])
        where = reward_problems.Samples(
            prompts=list(prompts), completions=list(completions)
        ).describe(i)
        raise RewardError(
            [f"{owner} returned {found[i]} for {faults.size} completions, first at {where}"]
        )
    return found


def _close_all(runners: Sequence[reward_runner.RewardRunner]) -> None:
    for runner in runners:
        runner.close()
