"""Settings of a cluster: where the roles live, how they sample and how the actor is trained."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import optax
from jax.sharding import Mesh

from tunix.models.transformer import sharding
from tunix.rl import alarms as alarms_lib
from tunix.rl import roles
from tunix.rl.rollout import base_rollout, mock_rollout, vanilla_rollout
from tunix.sft import training_config
from tunix.utils import config as config_lib

Role = roles.Role
Mode = roles.Mode

EngineFactory = Callable[..., base_rollout.BaseRollout]
"""A subclass of ``BaseRollout``, or what makes one from the same arguments."""

ROLLOUT_ENGINES: Mapping[str, EngineFactory] = {
    "vanilla": vanilla_rollout.VanillaRollout,
    "mock": mock_rollout.MockRollout,
}

DEFAULT_SLOTS = 32
"""Completions decoded at the same time where nothing else is said."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLTrainingConfig(training_config.TrainingConfig):
    """Settings of the actor's training; sizes count prompts unless they say otherwise."""

    actor_optimizer: optax.GradientTransformation
    critic_optimizer: optax.GradientTransformation | None = None
    """The critic's, where there is one; ``None`` takes the actor's."""
    mini_batch_size: int | None = None
    """Prompts per optimizer step; by default, all prompts of a rollout."""
    train_micro_batch_size: int | None = None
    """Prompts whose gradient is computed at a time, with completions of the greatest length: of
    shorter ones, more. By default, rows of about 512 tokens on a CPU and 2,048 elsewhere. Changes
    memory and speed, not the result."""
    rollout_micro_batch_size: int | None = None
    """Completions decoded at the same time; by default, 32."""
    compute_logps_micro_batch_size: int | None = None
    """Rows of tokens, each with room for a prompt and its completions at their greatest lengths,
    whose log-probabilities or values are computed at a time outside of the update; by default,
    and at most, those of a training micro-batch. Changes memory and speed, not the result."""
    alarms: alarms_lib.AlarmConfig | None = dataclasses.field(
        default_factory=alarms_lib.AlarmConfig
    )
    """When to warn in the log and in ``alarms.jsonl``; ``None`` never does."""
    accuracy_function: str | None = None
    """The reward function that says, by a score of at least 1, which held-out completions are
    right; ``None`` takes the first."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        for name in (
            "mini_batch_size",
            "train_micro_batch_size",
            "rollout_micro_batch_size",
            "compute_logps_micro_batch_size",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name} must be at least 1 or None, got {value}"
        if self.gradient_accumulation_steps is not None:
            yield (
                "gradient_accumulation_steps is not used in reinforcement learning; set "
                "train_micro_batch_size to the number of prompts per micro-batch"
            )
        if self.early_stopping is not None:
            yield "early_stopping is not used in reinforcement learning; set max_steps"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterConfig(config_lib.Config):
    """Where the roles live, how they sample and how the actor is trained."""

    training_config: RLTrainingConfig
    rollout_config: base_rollout.RolloutConfig | Mapping[Mode, base_rollout.RolloutConfig]
    """How to sample; by mode if evaluation samples differently."""
    role_to_mesh: Mapping[Role, Mesh] = dataclasses.field(default_factory=dict)
    """Devices of the roles and how they are arranged. Equal meshes share devices; different ones
    split them, in any shapes. A role that is not named is where the actor is, and the actor where
    its model is."""
    rollout_engine: str | EngineFactory = "vanilla"
    """A name in ``ROLLOUT_ENGINES`` or your own :class:`BaseRollout`."""
    offload_to_cpu: bool = False
    """Keep models that are not in use in host memory while others use their devices; see
    ``docs/explanation/cluster.md``. Changes memory and speed, not the result."""
    verify_weight_sync: bool = False
    """Compare checksums of the rollout's weights and the actor's after every sync."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        for role in self.role_to_mesh:
            if not isinstance(role, Role):
                yield f"role_to_mesh has the key {role!r}; keys are {[str(r) for r in Role]}"
        engine = self.rollout_engine
        if isinstance(engine, str) and engine not in ROLLOUT_ENGINES:
            hint = config_lib.did_you_mean(engine, ROLLOUT_ENGINES)
            yield f"rollout_engine {engine!r} is not one of {sorted(ROLLOUT_ENGINES)}{hint}"
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
        engine = self.rollout_engine
        return ROLLOUT_ENGINES[engine] if isinstance(engine, str) else engine
