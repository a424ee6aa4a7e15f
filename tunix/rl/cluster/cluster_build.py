"""Puts the models of a cluster where they belong, and checks that they go together."""

import dataclasses
from collections.abc import Mapping, Sequence

from flax import nnx
from jax.sharding import Mesh

from tunix.models import lora
from tunix.models.transformer import decoder, sharding
from tunix.rl import reshard, roles, trainer
from tunix.rl.cluster import (
    cluster_config,
    cluster_parts,
    critic_trainer,
    placement,
    policy_sync,
    residency,
    trained_role,
)
from tunix.rl.inference import inference_worker
from tunix.rl.rollout import base_rollout
from tunix.sft import place as place_lib
from tunix.tokenizers import tokenizer_adapter
from tunix.utils import config as config_lib

Role = roles.Role
Mode = roles.Mode


def place_models(
    actor: nnx.Module,
    critic: nnx.Module | None,
    reference: nnx.Module | None,
    reward: nnx.Module | None,
    *,
    config: cluster_config.ClusterConfig,
) -> None:
    """Move every model to the mesh of its role, in place; what two share stays shared.

    Raises:
        ConfigError: If actor and reference do not go together, or an axis splits nothing.
        ShardingError: If a mesh cannot hold a model.
    """
    _check_models(actor, reference)
    mover = placement.Mover()
    meshes = {Role.ROLLOUT: config.mesh(Role.ROLLOUT)}
    for role, model in (
        (Role.ACTOR, actor),
        (Role.CRITIC, critic),
        (Role.REFERENCE, reference),
        (Role.REWARD, reward),
    ):
        if model is not None:
            mover.move(model, config.mesh(role))
            meshes[role] = place_lib.Place.of(model, ()).mesh
    check_axes(meshes, config.training_config.data_sharding_axis)


def trained_roles(
    actor: nnx.Module, critic: nnx.Module | None, cluster: cluster_config.ClusterConfig
) -> tuple[trained_role.TrainedRole, trained_role.TrainedRole | None]:
    """Return actor and critic with their trainers, restored if there is a checkpoint."""
    config = cluster.training_config
    if critic is not None:
        config = critic_trainer.set_aside_damaged(config)
    place, own = _place_and_settings(actor, config)
    made = trainer.Trainer(actor, own.actor_optimizer, own)
    role = trained_role.TrainedRole(made, place)
    if critic is None:
        return role, None
    place, own = _place_and_settings(critic, config)
    also = critic_trainer.make_critic_trainer(critic, own, made)
    return role, trained_role.TrainedRole(also, place)


def _place_and_settings(
    model: nnx.Module, config: cluster_config.RLTrainingConfig
) -> tuple[place_lib.Place, cluster_config.RLTrainingConfig]:
    """Return where a model is, and the settings of its trainer.

    Meshes of roles have different axes; a trainer splits rows over those that its model's has.
    """
    place = place_lib.Place.of(model, config.data_sharding_axis)
    if place.mesh is None:
        return place, config
    return place, dataclasses.replace(config, data_sharding_axis=place.data_axes)


def make_worker(
    actor: nnx.Module,
    reference: nnx.Module | None,
    reward: nnx.Module | None,
    config: cluster_config.ClusterConfig,
) -> inference_worker.InferenceWorker:
    """Return what computes with models that are not trained.

    Without a reference, the actor takes its place, or a copy of it where the role has a mesh of
    its own. Only LoRA may use it: the copy's adapters are left out, and the rest never changes.
    """
    found = actor if reference is None else reference
    mesh = config.mesh(Role.REFERENCE)
    is_elsewhere = mesh is not None and not placement.lives_on(found, mesh)
    if reference is None and lora.is_lora_enabled(actor) and mesh is not None and is_elsewhere:
        found = reshard.reshard_model_to_mesh(actor, mesh)
    models = {Role.REFERENCE.value: found}
    return inference_worker.InferenceWorker(
        models if reward is None else models | {Role.REWARD.value: reward},
        adapters=reference is not None,
        data_sharding_axis=config.training_config.data_sharding_axis,
    )


def make_rollout(
    actor: trained_role.TrainedRole,
    critic: trained_role.TrainedRole | None,
    worker: inference_worker.InferenceWorker,
    tokenizer: tokenizer_adapter.TokenizerAdapter,
    config: cluster_config.ClusterConfig,
) -> tuple[base_rollout.BaseRollout, policy_sync.PolicySync, residency.Residency]:
    """Return the engine, what brings it weights, and what moves it and all others out of the way.

    Raises:
        ConfigError: If the settings ask for what the engine cannot do.
    """
    sync = policy_sync.PolicySync(actor.trainer, config.mesh(Role.ROLLOUT))
    model = sync.model()
    rollout = config.engine_factory(
        model=model,
        tokenizer=tokenizer,
        cache_size=max(config.rollout(mode).cache_size for mode in Mode),
        max_slots=config.training_config.rollout_micro_batch_size or cluster_config.DEFAULT_SLOTS,
    )
    _check_engine(rollout, config)
    if not sync.moves_part(rollout):
        sync.keep_base(model)
    if not config.offload_to_cpu:
        return rollout, sync, residency.Residency({})
    models = {role: worker.get_model(role) for role in worker.places}
    parts = cluster_parts.make_residency(
        actor.trainer,
        None if critic is None else critic.trainer,
        {role: model for role, model in models.items() if model is not actor.trainer.model},
        rollout,
        place_lib.Place.of(model, ()).devices,
    )
    return rollout, sync, parts


def _check_models(actor: nnx.Module, reference: nnx.Module | None) -> None:
    problems = []
    if reference is not None and reference is actor:
        problems.append(
            "reference is the actor itself and would change with it; leave it out (LoRA: the base "
            "model is used) or pass a copy"
        )
    if isinstance(actor, decoder.Decoder) and isinstance(reference, decoder.Decoder):
        sizes = (actor.num_embed, reference.num_embed)
        if sizes[0] != sizes[1]:
            problems.append(f"actor and reference have vocabularies of {sizes[0]} and {sizes[1]}")
    if problems:
        raise config_lib.ConfigError("RLCluster", problems)


def check_axes(meshes: Mapping[Role, Mesh | None], rows: Sequence[str]) -> None:
    """Check that no axis leaves devices to do all the same, and that rows have theirs.

    Args:
        meshes: Mesh of each role; ``None`` for one that nothing is arranged on.
        rows: Axes that the rows of a batch are split over.

    Raises:
        ConfigError: Naming every axis that nothing knows.
    """
    parameters = {axis for axis in sharding.FSDP_TP.values() if axis}
    known = sorted(parameters | set(rows))
    sizes = {
        (role, axis): size
        for role, mesh in meshes.items()
        if mesh is not None
        for axis, size in mesh.shape.items()
    }
    problems = []
    for axis in sorted({axis for (_, axis), size in sizes.items() if size > 1} - set(known)):
        names = [role.value for role, own in sizes if own == axis]
        problems.append(
            f"nothing is split over the axis {axis!r} of {', '.join(names)}: parameters and rows "
            f"are over {known}{config_lib.did_you_mean(axis, known)}; rename it, or name it in "
            "data_sharding_axis"
        )
    found = {axis for _, axis in sizes}
    for axis in rows:
        if found and axis not in found | parameters:
            hint = config_lib.did_you_mean(axis, found)
            problems.append(f"data_sharding_axis {axis!r} is an axis of no mesh{hint}")
    if problems:
        raise config_lib.ConfigError("meshes", problems)


def _check_engine(rollout: base_rollout.BaseRollout, config: cluster_config.ClusterConfig) -> None:
    problems, kind = [], type(rollout)
    if config.offload_to_cpu and kind.offload is base_rollout.BaseRollout.offload:
        problems.append(
            f"offload_to_cpu: {kind.__name__} cannot leave its devices; give it offload() and "
            "load(), or leave the setting out"
        )
    if config.verify_weight_sync and rollout.weights() is None:
        problems.append(
            f"verify_weight_sync: {kind.__name__} does not show its weights; give it weights(), or "
            "leave the setting out"
        )
    if problems:
        raise config_lib.ConfigError("ClusterConfig", problems)
