"""Settings that the runs of all reinforcement learning share.

What an algorithm adds is in ``grpo_schema.py`` and ``ppo_schema.py``.
"""

import abc
import dataclasses
from collections.abc import Iterator
from typing import Literal

from tunix.cli import optimizers, role_meshes, schema
from tunix.data import prompts
from tunix.rl import alarms as alarms_lib
from tunix.rl import algorithm_config, roles, tasks
from tunix.rl import curriculum as curriculum_lib
from tunix.utils import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLTrainingOptions(schema.LoopOptions):
    """``rl_training_config``: the loop; sizes count prompts unless they say otherwise."""

    actor_optimizer_config: optimizers.OptimizerOptions = dataclasses.field(
        default_factory=optimizers.OptimizerOptions
    )

    mini_batch_size: int | None = None
    """Prompts per optimizer step; all of a batch when unset."""

    train_micro_batch_size: int | None = None
    """Prompts whose gradient is computed at a time, with completions of the greatest length: of
    shorter ones, more. Rows of about 512 tokens on a CPU and 2,048 elsewhere when unset. Changes
    memory and speed, not the result."""

    rollout_micro_batch_size: int = 32
    """Completions decoded at the same time."""

    compute_logps_micro_batch_size: int | None = None
    """Rows of tokens, each with room for a prompt and its completions at their greatest lengths,
    whose log-probabilities or values are computed at a time outside of the update; at most,
    and when unset, those of a training micro-batch. Changes memory and speed, not the result."""

    alarms: alarms_lib.AlarmConfig | None = dataclasses.field(
        default_factory=alarms_lib.AlarmConfig
    )
    """When to warn on the console and in ``alarms.jsonl``; null never does."""

    def problems(self) -> Iterator[str]:
        """Yield numbers out of range."""
        yield from super().problems()
        for name in (
            "mini_batch_size",
            "train_micro_batch_size",
            "rollout_micro_batch_size",
            "compute_logps_micro_batch_size",
        ):
            yield from schema.below_one(name, getattr(self, name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutOptions(config_lib.Config):
    """``rollout_config``: how completions are sampled."""

    total_generation_steps: int | None = None
    """Tokens after which a completion is cut off; a task knows its own number."""

    max_prompt_length: int = 256
    """A longer prompt is an error: nothing is cut silently."""

    temperature: float = 1.0
    """Divides the logits; part of the policy that is trained."""

    top_p: float | None = None
    """Sample from the smallest set of likeliest tokens with at least this mass."""

    top_k: int | None = None
    """Sample from the k likeliest tokens."""

    def problems(self) -> Iterator[str]:
        """Yield numbers out of range."""
        yield from super().problems()
        for name in ("total_generation_steps", "max_prompt_length", "top_k"):
            yield from schema.below_one(name, getattr(self, name))
        if not 0.0 < self.temperature < float("inf"):
            yield f"temperature must be a positive number, got {self.temperature}"
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            yield f"top_p must lie in (0, 1], got {self.top_p}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardModelOptions(config_lib.Config):
    """``reward_model_config``: a trained model that scores completions."""

    model_id: str
    """A directory, or hub id, of what transformers saves of ``AutoModelForSequenceClassification``
    with one label. Its tokenizer must be the policy's."""

    model_source: Literal["huggingface", "kaggle", "gcs", "local"] = "huggingface"
    """Where to look for what is not on disk; ``local`` never asks anyone."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """How parameters are stored."""

    precision: Literal["auto", "exact", "fast"] = "auto"
    """As in ``model_config``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationOptions(config_lib.Config):
    """``evaluation``: questions nobody trains on, asked before and after."""

    num_questions: int = 64
    """How many questions a task holds out, at least; rows of ``eval_data_path`` are all asked."""

    samples_per_question: int = 4
    """Completions sampled for each question, besides the greedy one."""

    num_shown: int = 6
    """Questions whose replies are printed side by side."""

    accuracy_function: str | None = None
    """The reward function that accuracy is about: a reply is right if this scores it with at least
    1, whatever the others say. The first when unset."""

    def problems(self) -> Iterator[str]:
        """Yield numbers out of range."""
        yield from super().problems()
        for name in ("num_questions", "samples_per_question"):
            yield from schema.below_one(name, getattr(self, name))
        if self.num_shown < 0:
            yield f"num_shown must not be negative, got {self.num_shown}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLRun(schema.RunOptions, abc.ABC):
    """What every algorithm's run has: questions, rewards, rollouts, the loop."""

    task: str | None = None
    """Questions, answers and reward of a built-in task."""

    data_path: str | None = None
    """Without a task: rows with a prompt and the columns that rewards read. A file of JSON lines,
    JSON or Parquet, a pattern of files, or a data set of Hugging Face (``hub:OWNER/NAME``)."""

    eval_data_path: str | None = None
    """Without a task: rows to evaluate on."""

    prompt_column: str | None = None
    """Column of the prompts; ``prompts`` or ``prompt`` when unset."""

    system_prompt: str | None = None
    """The system message before every prompt; text becomes the user's message after it."""

    too_long: Literal["error", "filter"] = "error"
    """What happens to a row whose prompt is longer than ``max_prompt_length``."""

    solve_rate_column: str | None = None
    """Column with how often the row's prompt is solved, for the next two."""

    min_solve_rate: float = 0.0
    """Rows with a lower solve rate are left out of training, and counted."""

    max_solve_rate: float = 1.0
    """Rows with a higher one likewise."""

    curriculum: curriculum_lib.CurriculumConfig | None = None
    """Draws prompts by their running solve rate; without it each once per epoch."""

    python_files: tuple[str, ...] = ()
    """Python files to execute before settings are checked: what they register, settings may name
    (``tunix.rl.function_registry``). Files of ``reward_functions`` may register, too."""

    reward_functions: tuple[str, ...] = ()
    """Python files of reward functions; a task brings its own."""

    reward_model_config: RewardModelOptions | None = None
    """A reward model, the last of the reward functions: ``reward_model`` in logs."""

    batch_size: int = 8
    """Prompts per rollout."""

    num_train_epochs: int | None = None
    """Passes over the data; until ``max_steps`` when unset."""

    role_to_mesh: role_meshes.RoleMeshes | None = None
    """Devices of each role, in place of ``model_config.mesh``, which is that of all."""

    offload_to_cpu: bool = False
    """Keep models that are not in use in host memory while others use the devices. Changes memory
    and speed, not the result."""

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
        yield from schema.below_one("batch_size", self.batch_size)
        yield from schema.below_one("num_train_epochs", self.num_train_epochs)
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
        yield from prompts.solve_rate_problems(
            self.solve_rate_column, self.min_solve_rate, self.max_solve_rate
        )
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
