"""Which runs there are: tasks times algorithms times seeds, as arguments of ``tunix``.

Everything not named here is the default of the command.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
SEEDS = (0, 1, 2)
NUM_ROLLOUTS = 12
"""Batches of 6 prompts times 8 completions a run samples."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Algorithm:
    """A command and its settings."""

    command: str = "grpo"
    recipe: str = "quickstart/{task}.yaml"
    """Where it starts from, below ``examples``."""
    arguments: tuple[str, ...] = ()
    updates_per_rollout: int = 1
    more: tuple[str, ...] = ()
    """Settings outside of the algorithm's own block."""

    def all_arguments(self) -> tuple[str, ...]:
        """Return the settings, the number of steps among them."""
        steps = NUM_ROLLOUTS * self.updates_per_rollout
        section = f"{self.command}_config"
        return (
            *(f"{section}.{argument}" for argument in self.arguments),
            f"{section}.num_iterations={self.updates_per_rollout}",
            f"rl_training_config.max_steps={steps}",
            *self.more,
        )


ALGORITHMS = {
    "grpo": Algorithm(),
    "drgrpo": Algorithm(
        arguments=("advantage_estimator=drgrpo", "loss_agg_mode=sequence-mean-token-scale")
    ),
    "dapo": Algorithm(
        arguments=(
            "epsilon_high=0.28",
            "loss_agg_mode=token-mean",
            "dynamic_sampling=true",
            "max_sampling_rounds=3",
            "overlong_buffer.enable=true",
        )
    ),
    # One update per rollout would be GRPO: on-policy, every ratio is 1.
    "gspo": Algorithm(
        arguments=("loss_algo=gspo", "epsilon=3.0e-4", "epsilon_high=4.0e-4"),
        updates_per_rollout=2,
    ),
    "rloo": Algorithm(
        arguments=(
            "advantage_estimator=rloo",
            "loss_agg_mode=sequence-mean-token-sum",
            "kl_placement=reward",
            "kl_estimator=k1",
        )
    ),
    "ppo": Algorithm(
        command="ppo",
        recipe="ppo/larger_number.yaml",
        arguments=("num_generations=8",),
        updates_per_rollout=2,
        # The recipe is that of one task: lengths that fit all of them.
        more=("rollout_config.total_generation_steps=null", "rollout_config.max_prompt_length=96"),
    ),
}

TASKS = ("larger_number", "multiplication", "json_object")

# Adapters at one learning rate for all, so that the tasks cost the same; no checkpoints.
COMMON = (
    "batch_size=6",
    "model_config.lora_config.rank=16",
    "model_config.lora_config.alpha=32.0",
    "rl_training_config.checkpointing_options=null",
    "rl_training_config.actor_optimizer_config.learning_rate=4.0e-4",
    "rl_training_config.actor_optimizer_config.schedule_type=warmup_constant_schedule",
    "rl_training_config.actor_optimizer_config.warmup_steps=3",
    "rl_training_config.actor_optimizer_config.b2=0.95",
    "evaluation.samples_per_question=4",
    "evaluation.num_shown=0",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One cell of the matrix."""

    task: str
    algorithm: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its directory."""
        return f"{self.task}-{self.algorithm}-{self.seed}"

    def command(self, run_dir: pathlib.Path) -> list[str]:
        """Return the arguments of ``tunix``."""
        algorithm = ALGORITHMS[self.algorithm]
        # There are only 64 products, and mirror images are held out together.
        held_out = 16 if self.task == "multiplication" else 24
        return [
            algorithm.command,
            f"examples/{algorithm.recipe.format(task=self.task)}",
            *COMMON,
            f"task={self.task}",
            *algorithm.all_arguments(),
            f"evaluation.num_questions={held_out}",
            f"seed={self.seed}",
            f"model_config.rng_seed={self.seed}",
            f"run_dir={run_dir}",
        ]


def runs() -> Iterator[Run]:
    """Yield all runs; those that tell most come first."""
    for seed in SEEDS:
        for task in TASKS:
            for algorithm in ALGORITHMS:
                yield Run(task=task, algorithm=algorithm, seed=seed)
