"""Settings of a cluster: where the roles live, how they sample and how the actor is trained."""

import dataclasses
from collections.abc import Iterator, Mapping

import optax
from jax.sharding import Mesh

from tunix.models.transformer import sharding
from tunix.rl import algorithm_config, roles
from tunix.rl.monitoring import alarms as alarms_lib
from tunix.rl.rollout import base_rollout, engines
from tunix.sft import training_config
from tunix.utils import config as config_lib

Role = roles.Role
Mode = roles.Mode

EngineFactory = engines.EngineFactory

DEFAULT_SLOTS = 32
"""Completions decoded at the same time where nothing else is said."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateConfig(config_lib.Config):
    """How a rollout is worked through; sizes count prompts unless they say otherwise."""

    mini_batch_size: int | None = None
    """Prompts per optimizer step; all prompts of a rollout when unset."""

    train_micro_batch_size: int | None = None
    """Prompts whose gradient is computed at a time, with completions of the greatest length: of
    shorter ones, more. Rows of about 512 tokens on a CPU and 2,048 elsewhere when unset. Changes
    memory and speed, not the result."""

    rollout_micro_batch_size: int | None = None
    """Completions decoded at the same time; 32 when unset."""

    compute_logps_micro_batch_size: int | None = None
    """Rows of tokens, each with room for a prompt and its completions at their greatest lengths,
    whose log-probabilities or values are computed at a time outside of the update; at most,
    and when unset, those of a training micro-batch. Changes memory and speed, not the result."""

    alarms: alarms_lib.AlarmConfig | None = dataclasses.field(
        default_factory=alarms_lib.AlarmConfig
    )
    """When to warn on the console and in ``alarms.jsonl``; never when null."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        yield from config_lib.below_one(
            self,
            "mini_batch_size",
            "train_micro_batch_size",
            "rollout_micro_batch_size",
            "compute_logps_micro_batch_size",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(config_lib.Config):
    """What held-out completions are measured by."""

    accuracy_function: str | None = None
    """The reward function that accuracy is about: a reply is right if this scores it with at least
    1, whatever the others say. The first when unset."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLTrainingConfig(UpdateConfig, EvaluationConfig, training_config.TrainingConfig):
    """Settings of the actor's training."""

    actor_optimizer: optax.GradientTransformation
    critic_optimizer: optax.GradientTransformation | None = None
    """The critic's, where there is one; ``None`` takes the actor's."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        if self.gradient_accumulation_steps is not None:
            yield (
                "gradient_accumulation_steps is not used in reinforcement learning; set "
                "train_micro_batch_size to the number of prompts per micro-batch"
            )
        if self.early_stopping is not None:
            yield "early_stopping is not used in reinforcement learning; set max_steps"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig(config_lib.Config):
    """What samples, and what a cluster does with it."""

    rollout_engine: str | EngineFactory = "vanilla"
    """``vanilla``, the engine of this library, or your own
    :class:`~tunix.rl.rollout.base_rollout.BaseRollout`: the class itself in Python, or the name
    under which a file of ``python_files`` registers it as a ``rollout_engine``."""

    offload_to_cpu: bool = False
    """Keep models that are not in use in host memory while others use their devices; see
    ``docs/explanation/cluster.md``. Changes memory and speed, not the result."""

    verify_weight_sync: bool = False
    """Compare checksums of the rollout's weights and the actor's after every sync."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        yield from algorithm_config.choice_problems("rollout_engine", self.rollout_engine)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterConfig(EngineConfig):
    """Where the roles live, how they sample and how the actor is trained."""

    training_config: RLTrainingConfig
    rollout_config: base_rollout.RolloutConfig | Mapping[Mode, base_rollout.RolloutConfig]
    """How to sample; by mode if evaluation samples differently."""
    role_to_mesh: Mapping[Role, Mesh] = dataclasses.field(default_factory=dict)
    """Devices of the roles and how they are arranged. Equal meshes share devices; different ones
    split them, in any shapes. A role that is not named is where the actor is, and the actor where
    its model is."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        for role in self.role_to_mesh:
            if not isinstance(role, Role):
                yield f"role_to_mesh has the key {role!r}; keys are {[str(r) for r in Role]}"
        if isinstance(self.rollout_config, Mapping) and Mode.TRAIN not in self.rollout_config:
            yield "rollout_config has no entry for Mode.TRAIN"
        elif self.rollout(Mode.TRAIN).temperature == 0.0:
            yield (
                "rollout_config.temperature is 0 in training: greedy completions of a prompt are "
                "all alike and teach nothing; set it above 0"
            )

    def rollout(self, mode: Mode) -> base_rollout.RolloutConfig:
        """Return how to sample in a mode; evaluation samples like training if nothing is said."""
        if isinstance(self.rollout_config, base_rollout.RolloutConfig):
            return self.rollout_config
        return self.rollout_config.get(mode, self.rollout_config[Mode.TRAIN])

    def mesh(self, role: Role) -> Mesh | None:
        """Return the mesh of a role, if one is given to it or to the actor."""
        mesh = self.role_to_mesh.get(role, self.role_to_mesh.get(Role.ACTOR))
        return None if mesh is None else sharding.with_propagated_axes(mesh)

    @property
    def engine_factory(self) -> EngineFactory:
        """What makes the rollout engine."""
        return algorithm_config.resolve("rollout_engine", self.rollout_engine)
