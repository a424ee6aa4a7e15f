"""The loop around a learner's step: data, logging, evaluation, checkpoints, interrupts."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from tunix.rl import alarms, completions_log, evaluation, rl_cluster, trajectory
from tunix.rl.collecting import collector, source
from tunix.sft import evaluation as sft_evaluation
from tunix.sft import interrupt, metrics_logger, progress_bar

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
    """What the loop has learn from rollouts."""

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


class RLLoop:
    """One call of ``RLLearner.train``.

    Steps are counted in optimizer steps, as in all of the library: those of a rollout are
    logged under the last one.
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
        self._progress: progress_bar.ProgressBar | None = None
        options = self._config.metrics_logging_options
        self._alarms = alarms.AlarmWatch(
            self._config.alarms, None if options is None else options.directory
        )
        self._has_ended = False

    def run(self) -> None:
        """Train until ``max_steps``, the end of the data, or an interrupt."""
        self._resume()
        if self._config.pbar_description is not None:
            self._progress = progress_bar.ProgressBar(
                self._config.metrics_prefix,
                self._trainer.metrics_logger,
                self._trainer.train_steps,
                self._config.max_steps,
                self._config.pbar_description,
            )
            self._expect_steps()
        try:
            with (
                interrupt.graceful_interrupt() as stop,
                self._rollouts.running(self._learner.global_steps),
            ):
                while not stop.requested and not self._is_complete() and self._step():
                    pass
                if not stop.requested:
                    self._cluster.require_learned()
                self._finish()
        finally:
            if self._progress is not None:
                self._progress.close()
        if stop.requested:
            raise interrupt.TrainingInterrupted(
                self._trainer.train_steps, self._config.checkpoint_root_directory, stop.signum
            )

    def _is_complete(self) -> bool:
        max_steps = self._config.max_steps
        return max_steps is not None and self._trainer.train_steps >= max_steps

    def _resume(self) -> None:
        """Go to where the restored checkpoint was saved, in the data and in the logs."""
        trainer = self._trainer
        if self._config.checkpoint_root_directory is not None:
            trainer.metrics_logger.truncate_after(trainer.train_steps)
            self._learner.completions_log.truncate_after(trainer.train_steps)
            self._resume_alarms(trainer.train_steps)
        if (restored := trainer.restored_metadata) is not None:
            self._rollouts.resume(restored)

    def _resume_alarms(self, step: int) -> None:
        if (options := self._config.metrics_logging_options) is None:
            return
        prefix = metrics_logger.event_name(
            self._config.metrics_prefix, "", metrics_logger.Mode.TRAIN
        )
        rows = alarms.logged_rollouts(options.directory / "metrics.jsonl", f"{prefix}/")
        self._alarms.resume(rows, step=step)

    def _step(self) -> bool:
        """Train on one rollout; return False if there is none."""
        first_step = self._trainer.train_steps
        start = time.perf_counter()
        self._cluster.perf.take()
        try:
            collected = self._rollouts.next(self._learner.global_steps)
            if collected is None:
                self._has_ended = True
                return False
            groups = self._learner.learn(collected)
        except Exception:
            # Data, prompts and rewards are the user's: what was learned before must not be lost.
            if self._trainer.train_steps == first_step:
                self._save_last()
            raise
        self._rollouts.publish(self._learner.global_steps, groups)
        num_tokens = sum(t.num_sampled for group in groups for t in group.trajectories)
        self._log_step(first_step, num_tokens, time.perf_counter() - start)
        self._after_step(first_step)
        return True

    def _log_step(self, first_step: int, num_tokens: int, seconds: float) -> None:
        spent = self._cluster.perf.take()
        self._cluster.buffer_metrics(
            {
                "step_time_sec": seconds,
                "tokens_per_second": num_tokens / seconds,
                **{f"time/{phase}": spent[phase] for phase in PHASES if phase in spent},
            }
        )
        step = self._trainer.train_steps
        self._alarms.observe(self._cluster.log_metrics(rl_cluster.Mode.TRAIN, step), step=step)
        if self._progress is not None:
            self._progress.update_metrics(list(SHOWN_METRICS), metrics_logger.Mode.TRAIN)
            self._expect_steps()
            self._progress.update(self._trainer.train_steps - first_step)

    def _expect_steps(self) -> None:
        """Say how many steps there will be, once it is known how many a rollout takes."""
        taken, steps = self._learner.global_steps, self._trainer.train_steps
        if self._progress is None or not (rollouts := self._rollouts.num_rollouts) or not taken:
            return
        left = rollouts - (taken - self._rollouts_before)
        total, max_steps = steps + round(steps / taken * left), self._config.max_steps
        self._progress.expect(total if max_steps is None else min(total, max_steps))

    def _after_step(self, first_step: int) -> None:
        """Do what is due: evaluation first, so that a checkpoint implies its log."""
        step, every = self._trainer.train_steps, self._config.eval_every_n_steps
        if self._eval is not None and step // every > first_step // every:
            self._evaluate(step)
        if self._trainer.checkpoint_manager.should_save(step):
            self._save(force=False)

    def _evaluate(self, step: int) -> None:
        """Log how the policy does on the whole evaluation set."""
        assert self._eval is not None
        with self._rollouts.paused():
            sampled = self._learner.evaluate(self._eval)
            greedy = self._learner.evaluate(self._eval, temperature=0.0)
        metrics = sampled.metrics | {f"greedy/{n}": v for n, v in greedy.metrics.items()}
        self._cluster.buffer_metrics(metrics, rl_cluster.Mode.EVAL)
        self._cluster.log_metrics(rl_cluster.Mode.EVAL, step)
        if self._progress is not None:
            shown = ["reward", "greedy/accuracy"]
            self._progress.update_metrics(shown, metrics_logger.Mode.EVAL)

    def _save(self, *, force: bool) -> None:
        """Save, once everything up to here is in the log: what a checkpoint covers is not lost."""
        self._trainer.metrics_logger.flush()
        taken = self._learner.global_steps
        self._cluster.save_at(
            {"global_steps": taken, **self._rollouts.position(taken)},
            force=force,
        )

    def _save_last(self) -> None:
        """Save the last complete step, unless it is saved or nothing was learned yet."""
        self._rollouts.finish(self._learner.global_steps)
        steps = self._trainer.train_steps
        manager = self._trainer.checkpoint_manager
        if manager.is_enabled and steps > 0 and manager.latest_step() != steps:
            self._save(force=True)
        self._trainer.metrics_logger.flush()
        self._trainer.checkpoint_manager.wait_until_finished()

    def _finish(self) -> None:
        if self._has_ended and self._trainer.train_steps == 0:
            raise ValueError("train_ds has no batch; pass a non-empty data set")
        self._trainer.wait()
        self._save_last()


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
