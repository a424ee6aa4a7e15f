"""The loop of reinforcement learning: sample, score, update, sync; log, evaluate, save."""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from tunix.rl import algorithm_config, common, rl_cluster, rollout_steps, trajectory
from tunix.rl.batches import batching, packing
from tunix.rl.collecting import (
    ahead,
    collector,
    experience,
    partial,
    rollout_state,
    sampler,
    scorer,
    source,
)
from tunix.rl.monitoring import completions_log, evaluation, rollout_metrics
from tunix.rl.objectives import advantages as advantages_lib
from tunix.rl.objectives import credit, log_ratio
from tunix.rl.objectives import kl as kl_lib
from tunix.rl.scoring import rewards
from tunix.sft import loss_output
from tunix.sft.loop import step_handle, training_loop
from tunix.utils import config as config_lib

TrainingInputT = Mapping[str, Sequence[Any]]
"""A batch: columns of equal length, ``prompts`` among them."""

RewardFn = rewards.RewardFn

MetricFn = scorer.MetricFn

ConfigT = TypeVar("ConfigT", bound=algorithm_config.AlgorithmConfig)

Mode = rl_cluster.Mode


class RLLearner(abc.ABC, Generic[ConfigT]):
    """Trains the actor of a cluster on rewards.

    A subclass says what the loss is and whether it needs a reference; everything else is here,
    in methods that a subclass may replace one by one.

    If the cluster's checkpoint directory holds a checkpoint, training continues from it, with
    the prompts and the random draws that an uninterrupted run would have had.

    Args:
        rl_cluster: Samples and trains.
        algo_config: The algorithm's settings.
        reward_fns: One function or several; see :mod:`tunix.rl.scoring.rewards`.
        metric_fns: Further metrics of every rollout.
    """

    def __init__(
        self,
        rl_cluster: rl_cluster.RLCluster,
        algo_config: ConfigT,
        reward_fns: RewardFn | Sequence[RewardFn],
        metric_fns: Sequence[MetricFn] | None = None,
    ):
        self.rl_cluster = rl_cluster
        self.algo_config = algo_config
        self.reward_manager = algo_config.reward_manager_class(
            reward_fns, algo_config.reward_weights
        )
        self.metric_fns = tuple(metric_fns or ())
        self.rollout_config = rl_cluster.config.rollout(Mode.TRAIN)
        """How completions are sampled in training."""
        self._training_config = rl_cluster.config.training_config
        self._trainer = rl_cluster.actor_trainer.with_loss_fn(self.loss_fn)
        options = self._training_config.metrics_logging_options
        self.completions_log = completions_log.CompletionsLog(
            None if options is None else options.directory / "completions.jsonl"
        )
        self.global_steps = rollout_steps.restored_steps(rl_cluster)
        """Rollouts trained on, those before a resume included."""
        self._has_updated = False
        self.collector = self.make_collector()
        """How the groups of a step come about."""

    @property
    def num_generations(self) -> int:
        """Completions sampled per prompt."""
        return self.algo_config.num_generations

    @property
    def num_iterations(self) -> int:
        """How often every rollout is trained on."""
        return self.algo_config.num_iterations

    @property
    def off_policy_steps(self) -> int:
        """How many steps before the newest weights each rollout is sampled with."""
        return self.algo_config.off_policy_steps

    @property
    def advantage_fn(self) -> advantages_lib.AdvantageFn:
        """What turns the rewards of a rollout into advantages of completions."""
        return self.algo_config.advantage_fn

    @property
    def max_completion_length(self) -> int:
        """Tokens after which a completion is cut off."""
        return self.rollout_config.max_tokens_to_generate

    @property
    def needs_reference(self) -> bool:
        """Whether the loss reads ``ref_logps``."""
        return False

    @property
    def skips_dead_sequences(self) -> bool:
        """Whether a sequence of advantage 0 is known to have no loss and no gradient."""
        return False

    @abc.abstractmethod
    def loss_fn(self, model: nnx.Module, batch: common.PolicyBatch) -> loss_output.LossOutput:
        """Return the loss of one micro-batch as sums and weights."""

    def train(
        self,
        train_ds: Iterable[TrainingInputT],
        eval_ds: Iterable[TrainingInputT] | None = None,
        skip_jit: bool = False,
    ) -> None:
        """Train until ``max_steps`` or the end of the data; a rollout is trained on in full.

        Args:
            train_ds: Batches of prompts, each sampled and trained on together. After a resume,
                the same data from its start.
            eval_ds: Batches evaluated in full, sampled and greedily, every
                ``eval_every_n_steps`` steps.
            skip_jit: Run every operation of the update on its own, for debugging.

        Raises:
            TrainingInterrupted: After SIGINT, when the step was finished and saved.
            RewardError: If a reward function fails. The last complete step is saved first.
            PromptError: If a prompt is too long; likewise.
        """
        manager = self.reward_manager
        if eval_ds is not None and isinstance(manager, rewards.RewardManager):
            evaluation.accuracy_function(self._training_config, manager.names)
        self.rl_cluster.set_jit(not skip_jit)
        rollouts = self._source(train_ds)
        steps = rollout_steps.RolloutSteps(self.rl_cluster, self, rollouts, eval_ds)
        training_loop.TrainingLoop(self._trainer, steps).run()

    def evaluate(
        self, eval_ds: Iterable[TrainingInputT], *, temperature: float | None = None
    ) -> evaluation.Evaluation:
        """Return how the current policy answers a whole evaluation set.

        Args:
            eval_ds: Batches of prompts.
            temperature: Another temperature than the settings'; 0 is greedy.
        """
        key = self.rl_cluster.sampling_key(
            Mode.EVAL, self._trainer.train_steps, call=int(temperature == 0.0)
        )
        return evaluation.evaluate(
            self.rl_cluster, eval_ds, self.reward_manager, key=key, temperature=temperature
        )

    def train_on(
        self,
        batch: TrainingInputT,
        draw: Callable[[], TrainingInputT | None] = lambda: None,
    ) -> list[trajectory.Group]:
        """Sample completions for a batch of prompts, train on them at once and return them.

        Args:
            batch: Columns, ``prompts`` among them.
            draw: Returns the next batch of the data, for algorithms that need more than one.
        """
        rollout = self.new_rollout(draw=draw)
        collected = self.collector.collect(batch, rollout)
        for metrics in rollout.metrics:
            self.rl_cluster.buffer_metrics(metrics)
        groups = self.learn(collected)
        with self.rl_cluster.perf.span("sync"):
            self.rl_cluster.sync_weights()
        return groups

    def learn(self, collected: collector.Collected) -> list[trajectory.Group]:
        """Train on a rollout, log it, and return its groups; the rollout's weights stay."""
        staleness = rollout_metrics.staleness(collected.groups, self._trainer.train_steps)
        trained = self.assign_credit(list(collected.groups))
        updates = self._update(trained)
        if self.algo_config.log_token_ratio:
            logps = self.per_token(trained, self.rl_cluster.get_old_per_token_logps)
            trained = log_ratio.with_log_ratios(trained, logps)
        groups = [*trained, *collected.discarded]
        self.global_steps += 1
        self.completions_log.append(groups, step=self._trainer.train_steps)
        self.rl_cluster.buffer_metrics(rollout_metrics.rollout_metrics(groups))
        is_stale = staleness["staleness_max"] > 0.0
        self.rl_cluster.buffer_metrics(rollout_metrics.update_metrics(updates, is_stale=is_stale))
        self.rl_cluster.buffer_metrics({**collected.metrics, **staleness})
        return groups

    def make_collector(self) -> collector.Collector:
        """Return how the groups of a step come about, as the settings say."""
        stretch = self.algo_config.partial_rollout_tokens
        if stretch is None:
            return collector.WholeCollector()
        return partial.PartialCollector(stretch, self.max_completion_length)

    def new_rollout(self, **given: Any) -> rollout_state.Rollout:
        """Return what the collector makes a rollout with, that of the step in progress.

        Args:
            given: Arguments of :class:`~tunix.rl.collecting.rollout_state.Rollout` by name.
        """
        count, cluster = self.num_generations, self.rl_cluster
        return rollout_state.Rollout(
            sampler=sampler.Sampler(cluster, self.rollout_config, num_samples=count),
            scorer=scorer.Scorer(
                reward_manager=self.reward_manager,
                advantage_fn=self.advantage_fn,
                shape_rewards=self.shape_rewards,
                metric_fns=self.metric_fns,
                num_samples=count,
                perf=cluster.perf,
            ),
            **{"step": self.global_steps, "policy_version": self._trainer.train_steps, **given},
        )

    def _source(self, train_ds: Iterable[TrainingInputT]) -> source.RolloutSource:
        """Return where the rollouts of a training come from."""
        steps = self.off_policy_steps
        if steps and self.rl_cluster.config.offload_to_cpu:
            raise config_lib.ConfigError(
                type(self).__name__,
                [
                    f"off_policy_steps is {steps}, so that models work at the same time, but "
                    "offload_to_cpu lets them take turns; leave one of them out"
                ],
            )
        made = ahead.AheadSource if steps else source.RolloutSource
        return made(
            self.rl_cluster, self.collector, self.new_rollout, train_ds, off_policy_steps=steps
        )

    def assign_credit(self, groups: list[trajectory.Group]) -> list[trajectory.Group]:
        """Return the groups with the advantages that are trained on; here those they have."""
        return groups

    def shape_rewards(self, scored: experience.Scored) -> experience.Scored:
        """Return the completions with the rewards that count; here those of the functions."""
        return scored

    def update(
        self, micro_batches: Sequence[common.PolicyBatch], *, weight: float
    ) -> list[step_handle.StepHandle]:
        """Take one optimizer step of every model that is trained, without waiting for it.

        Args:
            micro_batches: What is learned from; none where nothing is.
            weight: That of trajectories known to have neither loss nor gradient.
        """
        return [self.rl_cluster.update_actor(micro_batches, weight=weight)]

    def per_token(
        self,
        groups: Sequence[trajectory.Group],
        fn: Callable[[common.PolicyBatch], Float[Array, " N"]],
    ) -> list[Float[np.ndarray, " N"]]:
        """Return what ``fn`` says of the trained tokens of each trajectory, a chunk at a time.

        Args:
            groups: All trajectories of the rollout.
            fn: E.g. ``rl_cluster.get_ref_per_token_logps``.
        """
        settings = dataclasses.replace(self.batch_settings, mask_truncated=False, skip_dead=False)
        return self._in_chunks(groups, settings, fn)

    def kl_of_tokens(
        self, groups: Sequence[trajectory.Group], kl_fn: kl_lib.KLEstimator
    ) -> list[Float[np.ndarray, " N"]]:
        """Return each token's KL to the reference as the sampler saw it, and log the mean."""

        def divergence(batch: common.PolicyBatch) -> Float[Array, " N"]:
            ref_logps = self.rl_cluster.get_ref_per_token_logps(batch)
            return kl_fn(jnp.asarray(batch.sampler_logps), ref_logps)

        with self.rl_cluster.perf.span("reference"):
            values = self.per_token(groups, divergence)
        self.rl_cluster.buffer_metrics({"kl": float(np.concatenate(values).mean())})
        return values

    def _update(self, groups: Sequence[trajectory.Group]) -> list[dict[str, float]]:
        """Take all optimizer steps of a rollout and return the metrics of each."""
        size = self._training_config.mini_batch_size or len(groups)
        parts = [groups[i : i + size] for i in range(0, len(groups), size)]
        is_single = len(parts) * self.num_iterations == 1
        # With a single update the policy that is trained is the one that sampled, or, where that
        # one is older, the one that a correction weighs its draws for.
        is_stale = rollout_metrics.is_stale(groups, self._trainer.train_steps)
        has_moved = is_stale or self.algo_config.is_off_policy
        is_corrected = self.algo_config.correction_fn is not None
        on_policy = is_single and (is_corrected or not has_moved)
        if self.needs_reference:
            with self.rl_cluster.perf.span("reference"):
                score = self.rl_cluster.get_ref_per_token_logps
                parts = [self._with_logps(part, "ref_logps", score) for part in parts]
        if is_corrected and not is_single:
            score = self.rl_cluster.get_old_per_token_logps
            parts = [self._with_logps(part, "old_logps", score) for part in parts]
        steps = [
            batching.make_step_batches(
                part, self.batch_settings, on_policy=on_policy, at_least_one=not self._has_updated
            )
            for part in parts
        ]
        self._has_updated = True
        num_slots = sum(step.num_slots for step in steps)
        self.rl_cluster.buffer_metrics(
            {"packing_efficiency": sum(step.num_tokens for step in steps) / max(num_slots, 1)}
        )
        with self.rl_cluster.perf.span("train"):
            handles = [
                self.update(step.batches, weight=step.weight)
                for _ in range(self.num_iterations)
                for step in steps
            ]
            return [
                {name: value for one in step for name, value in one.result().items()}
                for step in handles
            ]

    def _with_logps(
        self,
        groups: Sequence[trajectory.Group],
        name: str,
        fn: Callable[[common.PolicyBatch], Float[Array, " N"]],
    ) -> list[trajectory.Group]:
        """Return the groups with what ``fn`` says of the tokens that are trained on."""
        found = self._in_chunks(groups, self.batch_settings, fn)
        return credit.rewritten(
            groups, lambda one, own: dataclasses.replace(one, **{name: own}), found
        )

    def _in_chunks(
        self,
        groups: Sequence[trajectory.Group],
        settings: batching.BatchSettings,
        fn: Callable[[common.PolicyBatch], Float[Array, " N"]],
    ) -> list[Float[np.ndarray, " N"]]:
        """Return what ``fn`` says of the tokens of each trajectory, 0 of those that do not count.

        Chunks are those of the update, or smaller where that is asked for.
        """
        limit = self._training_config.compute_logps_micro_batch_size
        if limit is not None:
            shape = settings.shape.at_most(limit, self.rl_cluster.data_parallelism)
            settings = dataclasses.replace(settings, shape=shape)
        return batching.make_step_batches(groups, settings, on_policy=True).per_trajectory(fn)

    @property
    def batch_settings(self) -> batching.BatchSettings:
        """How trajectories are laid out for an update: always alike."""
        config, training = self.rollout_config, self._training_config
        num_shards = self.rl_cluster.data_parallelism
        return batching.BatchSettings(
            shape=packing.chunk_shape(
                max_prompt_length=config.max_prompt_length,
                max_completion_length=config.max_tokens_to_generate,
                num_generations=self.num_generations,
                micro_batch_size=training.train_micro_batch_size,
                mini_batch_size=training.mini_batch_size,
                num_shards=num_shards,
            ),
            max_completion_length=config.max_tokens_to_generate,
            temperature=config.temperature,
            aggregate=self.algo_config.aggregate,
            mask_truncated=self.algo_config.mask_truncated,
            skip_dead=self.skips_dead_sequences,
            is_sharded=num_shards > 1,
        )
