"""Settings of ``tunix grpo``."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from tunix.cli import optimizers, schema
from tunix.data import prompts
from tunix.rl import alarms as alarms_lib
from tunix.rl import curriculum as curriculum_lib
from tunix.rl import tasks
from tunix.rl.grpo import grpo_config as grpo_config_lib
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
    """Prompts whose gradient is computed at a time; changes memory and speed, not the result."""

    rollout_micro_batch_size: int = 32
    """Completions decoded at the same time."""

    alarms: alarms_lib.AlarmConfig | None = dataclasses.field(
        default_factory=alarms_lib.AlarmConfig
    )
    """When to warn on the console and in ``alarms.jsonl``; null never does."""

    def problems(self) -> Iterator[str]:
        """Yield numbers out of range."""
        yield from super().problems()
        for name in ("mini_batch_size", "train_micro_batch_size", "rollout_micro_batch_size"):
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
class EvaluationOptions(config_lib.Config):
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
        for name in ("num_questions", "samples_per_question"):
            yield from schema.below_one(name, getattr(self, name))
        if self.num_shown < 0:
            yield f"num_shown must not be negative, got {self.num_shown}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrpoRun(schema.RunOptions):
    """``tunix grpo``: train by group-relative policy optimisation."""

    task: str | None = None
    """Questions, answers and reward of a built-in task."""

    data_path: str | None = None
    """Without a task: rows with a prompt and the columns that rewards read. A file of JSON lines,
    JSON or Parquet, a pattern of files, or a data set of Hugging Face (``hub:OWNER/NAME``)."""

    eval_data_path: str | None = None
    """Without a task: rows to evaluate on."""

    prompt_column: str | None = None
    """Column of the prompts; ``prompts`` or ``prompt`` when unset."""

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

    reward_functions: tuple[str, ...] = ()
    """Python files of reward functions; a task brings its own."""

    batch_size: int = 8
    """Prompts per rollout."""

    num_train_epochs: int | None = None
    """Passes over the data; until ``max_steps`` when unset."""

    grpo_config: grpo_config_lib.GRPOConfig = dataclasses.field(
        default_factory=grpo_config_lib.GRPOConfig
    )

    rollout_config: RolloutOptions = dataclasses.field(default_factory=RolloutOptions)

    rl_training_config: RLTrainingOptions = dataclasses.field(default_factory=RLTrainingOptions)

    evaluation: EvaluationOptions = dataclasses.field(default_factory=EvaluationOptions)

    def problems(self) -> Iterator[str]:
        """Yield settings that are missing, contradict each other or that nothing would read."""
        yield from super().problems()
        yield from schema.below_one("batch_size", self.batch_size)
        yield from schema.below_one("num_train_epochs", self.num_train_epochs)
        if self.num_train_epochs is None and self.rl_training_config.max_steps is None:
            yield "nothing ends the run: set rl_training_config.max_steps or num_train_epochs"
        yield from prompts.solve_rate_problems(
            self.solve_rate_column, self.min_solve_rate, self.max_solve_rate
        )
        adapters = self.model_config.lora_config
        if adapters is not None and adapters.dropout:
            yield (
                "model_config.lora_config.dropout is for supervised training: policies whose "
                "log-probabilities are compared must not drop anything; remove it"
            )
        if (self.task is None) == (self.data_path is None):
            yield "set either task or data_path: where the questions come from"
        if self.task is None:
            yield from self._problems_without_a_task()
        else:
            yield from self._problems_with_a_task(self.task)

    def _problems_without_a_task(self) -> Iterator[str]:
        if self.data_path is not None and not self.reward_functions:
            yield "data_path needs reward_functions: Python files that say what a reply is worth"
        if self.rollout_config.total_generation_steps is None:
            yield "rollout_config.total_generation_steps is required without a task"

    def _problems_with_a_task(self, task: str) -> Iterator[str]:
        if task not in tasks.TASKS:
            hint = config_lib.did_you_mean(task, tasks.TASKS)
            yield f"task {task!r} is not one of {sorted(tasks.TASKS)}{hint}"
        for name in ("eval_data_path", "prompt_column", "solve_rate_column"):
            if getattr(self, name) is not None:
                yield f"{name} is not read: the task {task!r} brings its own questions"
        if self.reward_functions:
            yield f"reward_functions are not read: the task {task!r} brings its own reward"
