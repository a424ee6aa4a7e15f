"""The steps of reinforcement learning: rollouts, what is learned from them, and their log."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from tunix.rl import rl_cluster, trajectory
from tunix.rl.collecting import collector, source
from tunix.rl.monitoring import alarms, completions_log, evaluation
from tunix.sft import metrics_logger, progress_bar
from tunix.sft.loop import evaluation as sft_evaluation
from tunix.sft.loop import training_loop
from tunix.sft.metrics import system_metrics

PHASES = (
    *("rollout", "score", "reference", "values", "train", "sync"),
    *("wait_rollout", "wait_trainer"),
)
"""Parts of a step whose seconds are logged as ``time/PHASE``. The last two say how long trainer and
sampler have waited for each other, where they work at the same time."""

SHOWN_METRICS = (
    "reward",
    "grad_norm",
    "critic/loss",
    "kl",
    "mismatch_kl",
    "completion_length",
    "dead_groups",
    "tokens_per_second",
    *(f"time/{phase}" for phase in PHASES),
)
"""Not the policy's loss: in the first update on a rollout it is 0 whatever is learned."""


class Learner(Protocol):
    """What learns from rollouts."""

    completions_log: completions_log.CompletionsLog

    global_steps: int
    """Rollouts trained on."""

    def learn(self, collected: collector.Collected) -> Sequence[trajectory.Group]:
        """Train on a rollout, and return what became of it."""
        ...

    def evaluate(
        self, eval_ds: Iterable[Mapping[str, Any]], *, temperature: float | None = None
    ) -> evaluation.Evaluation:
        """Return how the policy does."""
        ...


class RolloutSteps(training_loop.Steps[collector.Collected]):
    """Steps on rollouts: what reinforcement learning gives the loop.

    Those that are taken on one rollout are logged under the last one.

    Args:
        cluster: Has what is trained.
        learner: Learns.
        rollouts: Where rollouts come from.
        eval_ds: Batches of prompts that are evaluated, if any.
    """

    def __init__(
        self,
        cluster: rl_cluster.RLCluster,
        learner: Learner,
        rollouts: source.RolloutSource,
        eval_ds: Iterable[Mapping[str, Any]] | None,
    ):
        self._cluster, self._learner, self._rollouts = cluster, learner, rollouts
        self._trainer = cluster.actor_trainer
        self._config = cluster.config.training_config
        is_restored = self._trainer.restored_metadata is not None
        self._rollouts_before = 0 if is_restored else learner.global_steps
        self._eval = None if eval_ds is None else sft_evaluation.EvalData(eval_ds)
        self.has_eval = eval_ds is not None
        self._progress: progress_bar.ProgressBar | None = None
        options = self._config.metrics_logging_options
        self._alarms = alarms.AlarmWatch(
            self._config.alarms, None if options is None else options.directory
        )
        self._system = system_metrics.SystemMetrics(self._trainer.model, None)
        self._started = 0.0

    def resume(self) -> None:
        """Go to where the restored checkpoint was saved, in the data and in the logs."""
        trainer = self._trainer
        if self._config.checkpoint_root_directory is not None:
            trainer.metrics_logger.truncate_after(trainer.train_steps)
            self._learner.completions_log.truncate_after(trainer.train_steps)
            self._resume_alarms(trainer.train_steps)
        if (restored := trainer.restored_metadata) is not None:
            self._rollouts.resume(restored)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Have rollouts made in the body, and show the steps."""
        logger, done = self._trainer.metrics_logger, self._trainer.train_steps
        with progress_bar.shown(self._config, logger, done, self._config.max_steps) as progress:
            self._progress = progress
            self._expect_steps()
            with self._rollouts.running(self._learner.global_steps), self._system:
                yield

    def draw(self) -> collector.Collected | None:
        """Return the next rollout."""
        self._started = time.perf_counter()
        self._cluster.perf.take()
        self._system.skip()
        return self._rollouts.next(self._learner.global_steps)

    def take(self, drawn: collector.Collected) -> float:
        """Learn from a rollout, and log it."""
        first_step = self._trainer.train_steps
        groups = self._learner.learn(drawn)
        self._rollouts.publish(self._learner.global_steps, groups)
        num_tokens = sum(t.num_sampled for group in groups for t in group.trajectories)
        logged = self._log_step(num_tokens, time.perf_counter() - self._started)
        if self._progress is not None:
            self._progress.update_metrics(list(SHOWN_METRICS), metrics_logger.Mode.TRAIN)
            self._expect_steps()
            self._progress.update(self._trainer.train_steps - first_step)
        return logged["loss"]

    def evaluate(self) -> Mapping[str, float]:
        """Log how the policy does on the whole evaluation set, sampled and greedily."""
        assert self._eval is not None  # has_eval
        with self._rollouts.paused():
            sampled = self._learner.evaluate(self._eval)
            greedy = self._learner.evaluate(self._eval, temperature=0.0)
        metrics = sampled.metrics | {f"greedy/{n}": v for n, v in greedy.metrics.items()}
        self._cluster.buffer_metrics(metrics, rl_cluster.Mode.EVAL)
        self._cluster.log_metrics(rl_cluster.Mode.EVAL, self._trainer.train_steps)
        if self._progress is not None:
            shown = ["reward", "greedy/accuracy"]
            self._progress.update_metrics(shown, metrics_logger.Mode.EVAL)
        return metrics

    def save(self, metrics: Mapping[str, float] | None, *, force: bool) -> None:
        """Save all that is trained, and what is in flight."""
        taken = self._learner.global_steps
        position = {"global_steps": taken, **self._rollouts.position(taken)}
        self._cluster.save_at(position, force=force)

    def finish(self) -> None:
        """Have no rollout made that a checkpoint of the last step would not hold."""
        self._rollouts.finish(self._learner.global_steps)

    def require_learned(self) -> None:
        """Raise ``DivergedError`` if weights, or the losses at the end, are not finite."""
        self._cluster.require_learned()

    def _resume_alarms(self, step: int) -> None:
        if (options := self._config.metrics_logging_options) is None:
            return
        prefix = metrics_logger.event_name(
            self._config.metrics_prefix, "", metrics_logger.Mode.TRAIN
        )
        rows = alarms.logged_rollouts(options.directory / "metrics.jsonl", f"{prefix}/")
        self._alarms.resume(rows, step=step)

    def _log_step(self, num_tokens: int, seconds: float) -> Mapping[str, float]:
        spent = self._cluster.perf.take()
        self._cluster.buffer_metrics(
            {
                "step_time_sec": seconds,
                "tokens_per_second": num_tokens / seconds,
                **{f"time/{phase}": spent[phase] for phase in PHASES if phase in spent},
                **self._system.read(self._system.compiled(), 0, 0, seconds),
            }
        )
        step = self._trainer.train_steps
        logged = self._cluster.log_metrics(rl_cluster.Mode.TRAIN, step)
        self._alarms.observe(logged, step=step)
        return logged

    def _expect_steps(self) -> None:
        """Say how many steps there will be, once it is known how many a rollout takes."""
        taken, steps = self._learner.global_steps, self._trainer.train_steps
        rollouts = self._rollouts.num_rollouts
        if self._progress is None or not rollouts or not taken:
            return
        left = rollouts - (taken - self._rollouts_before)
        total, max_steps = steps + round(steps / taken * left), self._config.max_steps
        self._progress.expect(total if max_steps is None else min(total, max_steps))


def restored_steps(cluster: rl_cluster.RLCluster) -> int:
    """Return how many rollouts the restored checkpoint has behind it; 0 for a new run."""
    restored = cluster.actor_trainer.restored_metadata
    if restored is None:
        return 0
    if "global_steps" not in restored:
        directory = cluster.config.training_config.checkpoint_root_directory
        raise ValueError(
            f"the checkpoint in {directory} was not saved by reinforcement learning, so it does "
            "not say how many rollouts it has behind it; choose another checkpoint_root_directory"
        )
    return int(restored["global_steps"])
