"""The models of a reinforcement learning run and how they are trained, as the settings ask."""

import dataclasses

from tunix.cli.loading import build, reward_model_loading, rl_data
from tunix.cli.running import run_plan, run_text
from tunix.cli.schemas import optimizers, rl_schema, role_meshes
from tunix.models import lora
from tunix.rl import rl_cluster
from tunix.rl.objectives import critic as critic_lib
from tunix.rl.objectives import shared_critic
from tunix.sft import run_directory

Role = rl_cluster.Role


def make_cluster(
    run: rl_schema.RLRun, directory: run_directory.RunDirectory
) -> tuple[rl_cluster.RLCluster, rl_data.RLData]:
    """Return the models, ready to sample and train, and the questions to ask them."""
    meshes = role_meshes.make_meshes(run.role_to_mesh, run.model_config.mesh)
    actor, path = build.make_model(run.model_config, meshes.get(Role.ACTOR))
    tokenizer = run_text.make_tokenizer(run.tokenizer_config, actor, path, directory)
    data = rl_data.load(run, tokenizer)
    length = max(account.longest for account in data.reports) + data.max_tokens_to_generate
    build.report_context(path, actor, length, "rollout_config.total_generation_steps")
    reference = None
    if run.algo_config.beta != 0.0 and not lora.is_lora_enabled(actor):
        reference, _ = build.make_model(run.model_config, meshes.get(Role.REFERENCE))
    if run.has_value_head:
        shared_critic.add_value_head(actor)
    critic = None if run.critic_optimizer is None else critic_lib.create_critic_model(actor)
    reward = None
    if run.reward_model_config is not None:
        reward = reward_model_loading.load(
            run.reward_model_config, tokenizer, meshes.get(Role.REWARD)
        )
    cluster_config = rl_cluster.ClusterConfig.composed(
        run,
        training_config=training_config(run, directory, data),
        rollout_config=run.rollout(data.max_tokens_to_generate),
        role_to_mesh=meshes,
    )
    cluster = rl_cluster.RLCluster(
        actor=actor,
        critic=critic,
        reference=reference,
        reward=reward,
        tokenizer=tokenizer,
        cluster_config=cluster_config,
    )
    if reward is not None:
        further = reward_model_loading.as_reward_function(cluster.get_rewards)
        data = dataclasses.replace(data, reward_fns=[*data.reward_fns, further])
    return cluster, data


def training_config(
    run: rl_schema.RLRun, directory: run_directory.RunDirectory, data: rl_data.RLData
) -> rl_cluster.RLTrainingConfig:
    """Return the trainer's settings."""
    options = run.rl_training_config
    steps, critic = plan(run, data).steps, run.critic_optimizer
    return rl_cluster.RLTrainingConfig.composed(
        run,
        run.evaluation,
        options,
        actor_optimizer=optimizers.make_optimizer(options.actor_optimizer_config, steps),
        critic_optimizer=None if critic is None else optimizers.make_optimizer(critic, steps),
        rollout_micro_batch_size=run.slots,
        pbar_description=run.algorithm_name,
        **build.places(options, directory),
    )


def plan(run: rl_schema.RLRun, data: rl_data.RLData) -> run_plan.RunPlan:
    """Return how many optimizer steps the run takes, at most."""
    options = run.rl_training_config
    if run.num_train_epochs is None:
        return run_plan.RunPlan(max_steps=options.max_steps, data_steps=None)
    updates = -(-run.batch_size // (options.mini_batch_size or run.batch_size))
    data_steps = len(data.train_ds) * updates * run.algo_config.num_iterations
    return run_plan.RunPlan(max_steps=options.max_steps, data_steps=data_steps)
