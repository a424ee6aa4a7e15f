"""Settings that the runs of all reinforcement learning share.

What an algorithm adds is in ``grpo_schema.py`` and ``ppo_schema.py``.
"""

import abc
import dataclasses
from collections.abc import Iterator
from typing import Literal

from tunix.cli.schemas import optimizers, role_meshes, schema
from tunix.data import prompts
from tunix.rl import algorithm_config, roles, tasks
from tunix.rl.cluster import cluster_config
from tunix.rl.collecting import curriculum as curriculum_lib
from tunix.rl.rollout import base_rollout
from tunix.utils import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLTrainingOptions(schema.LoopOptions, cluster_config.UpdateConfig):
    """``rl_training_config``: the loop; sizes count prompts unless they say otherwise."""

    actor_optimizer_config: optimizers.OptimizerOptions = dataclasses.field(
        default_factory=optimizers.OptimizerOptions
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NativeEngine(base_rollout.EngineOptions):
    """``rollout_config.engine``: what samples, and its size. ``kind`` says what else is here."""

    kind: Literal["native"] = "native"
    """The engine of this library, or the one that ``rollout_engine`` names in its place."""

    slots: int | None = None
    """Completions decoded at the same time; those of
    ``rl_training_config.rollout_micro_batch_size``, its other name, when unset."""

    def problems(self) -> Iterator[str]:
        """Yield numbers out of range."""
        yield from super().problems()
        yield from config_lib.below_one(self, "slots")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutOptions(base_rollout.SamplingConfig):
    """``rollout_config``: how completions are sampled."""

    total_generation_steps: int | None = None
    """Tokens after which a completion is cut off; a task knows its own number."""

    engine: NativeEngine = dataclasses.field(default_factory=NativeEngine)

    def problems(self) -> Iterator[str]:
        """Yield numbers out of range."""
        yield from super().problems()
        yield from config_lib.below_one(self, "total_generation_steps")
        if self.temperature == 0.0:
            yield "temperature must be a positive number in training, got 0.0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationOptions(cluster_config.EvaluationConfig):
    """``evaluation``: questions nobody trains on, asked before and after."""

    num_questions: int = 64
    """How many questions a task holds out, at least; rows of ``eval_data_path`` are all asked."""

    samples_per_question: int = 4
    """Completions sampled for each question, besides the greedy one."""

    num_shown: int = 6
    """Questions whose replies are printed side by side."""

    def problems(self) -> Iterator[str]:
        """Yield numbers out of range."""
        yield from super().problems()
        yield from config_lib.below_one(self, "num_questions", "samples_per_question")
        if self.num_shown < 0:
            yield f"num_shown must not be negative, got {self.num_shown}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLRun(prompts.PromptConfig, cluster_config.EngineConfig, schema.RunOptions, abc.ABC):
    """What every algorithm's run has: questions, rewards, rollouts, the loop."""

    task: str | None = None
    """Questions, answers and reward of a built-in task."""

    data_path: str | None = None
    """Without a task: rows with a prompt and the columns that rewards read. A file of JSON lines,
    JSON or Parquet, a pattern of files, or a data set of Hugging Face (``hub:OWNER/NAME``)."""

    eval_data_path: str | None = None
    """Without a task: rows to evaluate on."""

    curriculum: curriculum_lib.CurriculumConfig | None = None
    """Draws prompts by their running solve rate; without it each once per epoch."""

    python_files: tuple[str, ...] = ()
    """Python files to execute before settings are checked: what they register, settings may name
    (``tunix.rl.function_registry``). Files of ``reward_functions`` may register, too."""

    reward_functions: tuple[str, ...] = ()
    """Python files of reward functions; a task brings its own."""

    reward_model_config: schema.HeldModel | None = None
    """A reward model, the last of the reward functions: ``reward_model`` in logs. ``model_id`` is
    what transformers saves of ``AutoModelForSequenceClassification`` with one label; its tokenizer
    must be the policy's."""

    num_train_epochs: int | None = None
    """Passes over the data; until ``max_steps`` when unset."""

    role_to_mesh: role_meshes.RoleMeshes | None = None
    """Devices of each role, in place of ``model_config.mesh``, which is that of all."""

    rollout_config: RolloutOptions = dataclasses.field(default_factory=RolloutOptions)

    rl_training_config: RLTrainingOptions = dataclasses.field(default_factory=RLTrainingOptions)

    evaluation: EvaluationOptions = dataclasses.field(default_factory=EvaluationOptions)

    @property
    @abc.abstractmethod
    def algorithm_name(self) -> str:
        """The algorithm, as headings name it."""

    @property
    @abc.abstractmethod
    def algo_config(self) -> algorithm_config.AlgorithmConfig:
        """The algorithm's settings."""

    @property
    def critic_optimizer(self) -> optimizers.OptimizerOptions | None:
        """How the critic is trained; ``None`` where there is none beside the actor."""
        return None

    @property
    def has_value_head(self) -> bool:
        """Whether the actor is its own critic."""
        return False

    @property
    def used_roles(self) -> tuple[roles.Role, ...]:
        """The roles for which there is a model."""
        there = {
            roles.Role.CRITIC: self.critic_optimizer is not None,
            roles.Role.REFERENCE: self.algo_config.beta != 0.0,
            roles.Role.REWARD: self.reward_model_config is not None,
        }
        return tuple(role for role in roles.Role if there.get(role, True))

    def problems(self) -> Iterator[str]:
        """Yield settings that are missing, contradict each other or that nothing would read."""
        yield from super().problems()
        yield from config_lib.below_one(self, "num_train_epochs")
        rollout = self.rollout_config
        yield from config_lib.batch_problems(
            {"batch_size": self.batch_size, "num_generations": self.algo_config.num_generations},
            {
                "rollout_config.max_prompt_length": rollout.max_prompt_length,
                "rollout_config.total_generation_steps": rollout.total_generation_steps or 1,
            },
        )
        if self.num_train_epochs is None and self.rl_training_config.max_steps is None:
            yield "nothing ends the run: set rl_training_config.max_steps or num_train_epochs"
        yield from self._engine_problems()
        if self.role_to_mesh is not None and self.model_config.mesh is not None:
            yield "set either role_to_mesh or model_config.mesh: where the models live"
        yield from self._problems_with_unread_meshes()
        size = self.rl_training_config.mini_batch_size
        if size is not None and size > self.batch_size:
            yield (
                f"rl_training_config.mini_batch_size {size} is more than the {self.batch_size} "
                "prompts of a rollout (batch_size): leave it out to update once per rollout"
            )
        adapters = self.model_config.lora_config
        if adapters is not None and adapters.dropout:
            yield (
                "model_config.lora_config.dropout is for supervised and preference training: the "
                "policy that is updated must be the one that sampled, which drops nothing; remove "
                "it"
            )
        if (self.task is None) == (self.data_path is None):
            yield "set either task or data_path: where the questions come from"
        if self.task is None:
            yield from self._problems_without_a_task()
        else:
            yield from self._problems_with_a_task(self.task)

    def rollout(self, longest: int) -> base_rollout.RolloutConfig:
        """Return how completions of at most ``longest`` tokens are sampled."""
        options = self.rollout_config
        return base_rollout.RolloutConfig.composed(
            options, options.engine, max_tokens_to_generate=longest, seed=self.seed
        )

    @property
    def slots(self) -> int | None:
        """Completions decoded at the same time, if anything is said of it."""
        return self.rollout_config.engine.slots or self.rl_training_config.rollout_micro_batch_size

    def _engine_problems(self) -> Iterator[str]:
        options, other = self.rollout_config, self.rl_training_config.rollout_micro_batch_size
        if other is not None and options.engine.slots not in (None, other):
            yield (
                f"rollout_config.engine.slots {options.engine.slots} and "
                f"rl_training_config.rollout_micro_batch_size {other} mean the same; keep one"
            )
        try:
            self.rollout(options.total_generation_steps or 1)
        except config_lib.ConfigError as error:
            yield from (f"rollout_config.engine: {problem}" for problem in error.problems)

    def _problems_with_unread_meshes(self) -> Iterator[str]:
        meshes = self.role_to_mesh
        if meshes is None:
            return
        reasons = {
            roles.Role.CRITIC: (meshes.critic, "there is no critic beside the actor"),
            roles.Role.REFERENCE: (meshes.reference, "with beta 0 there is no reference"),
            roles.Role.REWARD: (meshes.reward, "without reward_model_config there is none"),
        }
        for role, (mesh, reason) in reasons.items():
            if mesh is not None and role not in self.used_roles:
                yield f"role_to_mesh.{role.value} is not read: {reason}; remove it"

    def _problems_without_a_task(self) -> Iterator[str]:
        has_rewards = self.reward_functions or self.reward_model_config is not None
        if self.data_path is not None and not has_rewards:
            yield (
                "data_path needs reward_functions, Python files that say what a reply is worth, "
                "or a reward_model_config"
            )
        if self.rollout_config.total_generation_steps is None:
            yield "rollout_config.total_generation_steps is required without a task"

    def _problems_with_a_task(self, task: str) -> Iterator[str]:
        if task not in tasks.TASKS:
            hint = config_lib.did_you_mean(task, tasks.TASKS)
            yield f"task {task!r} is not one of {sorted(tasks.TASKS)}{hint}"
        for name in ("eval_data_path", "prompt_column", "system_prompt", "solve_rate_column"):
            if getattr(self, name) is not None:
                yield f"{name} is not read: the task {task!r} brings its own questions"
        if self.reward_functions:
            yield (
                f"reward_functions are not read: the task {task!r} brings its own reward; files "
                "that register functions belong in python_files"
            )
