"""The critic's trainer, and how its checkpoints keep step with the actor's."""

import dataclasses
import functools
import os
import pathlib
from typing import TYPE_CHECKING

from flax import nnx

from tunix.rl import trainer
from tunix.rl.cluster import cluster_config
from tunix.rl.objectives import critic
from tunix.sft import checkpoint_manager
from tunix.sft.checkpoints import checkpoint_recovery, checkpoint_storage

if TYPE_CHECKING:
    import orbax.checkpoint as ocp


def make_critic_trainer(
    model: nnx.Module,
    config: cluster_config.RLTrainingConfig,
    actor_trainer: trainer.Trainer,
) -> trainer.Trainer:
    """Return a trainer that stands where the actor's does.

    Its checkpoints lie beside the actor's, in a directory whose name ends in ``_critic``. They
    are written first, so a run that was killed between the two has one too many: it is deleted,
    for the resumed run takes that step again.

    Args:
        model: The critic.
        config: Settings; ``critic_optimizer`` is used if there is one.
        actor_trainer: Where metrics go, and the step to start from.

    Raises:
        ValueError: If the critic's checkpoint of the actor's step is missing.
    """
    optimizer = config.critic_optimizer or config.actor_optimizer
    root, options = config.checkpoint_root_directory, config.checkpointing_options
    if root is not None:
        root = str(checkpoints_beside(root))
        options = _with_one_more(options or checkpoint_manager.default_options())
        _delete_later_than(actor_trainer.train_steps, pathlib.Path(root), options)
    made = trainer.Trainer(
        model,
        optimizer,
        dataclasses.replace(
            config,
            checkpoint_root_directory=root,
            checkpointing_options=options,
            metrics_logging_options=None,
        ),
        actor_trainer.metrics_logger,
        actor_trainer.perf_tracer,
    )
    if made.train_steps != actor_trainer.train_steps:
        raise ValueError(
            f"the actor's checkpoint is of step {actor_trainer.train_steps}, but the critic's in "
            f"{root} of step {made.train_steps}; restore the missing one, let resume=newest-sound "
            "continue from the newest step that both have, or start a new run"
        )
    return made.with_loss_fn(functools.partial(critic.value_objective, clip_range=None))


def checkpoints_beside(root: str | os.PathLike[str]) -> pathlib.Path:
    """Return where the critic's checkpoints are if the actor's are in ``root``."""
    actors = checkpoint_storage.absolute(root)
    return actors.with_name(f"{actors.name}_critic")


def set_aside_damaged(
    config: cluster_config.RLTrainingConfig,
) -> cluster_config.RLTrainingConfig:
    """Do what ``config.resume`` asks for, for actor and critic at once.

    Returns:
        Settings under which their latest checkpoints are those to continue from.
    """
    root = config.checkpoint_root_directory
    if root is None or config.resume != "newest-sound":
        return config
    checkpoint_recovery.set_aside_damaged(
        [checkpoint_storage.absolute(root), checkpoints_beside(root)],
        config.checkpointing_options or checkpoint_manager.default_options(),
    )
    return dataclasses.replace(config, resume="latest")


def _with_one_more(options: "ocp.CheckpointManagerOptions") -> "ocp.CheckpointManagerOptions":
    """Return options under which the actor's oldest step outlives the critic's newest."""
    if options.max_to_keep is None:
        return options
    return dataclasses.replace(options, max_to_keep=options.max_to_keep + 1)


def _delete_later_than(
    step: int, root: pathlib.Path, options: "ocp.CheckpointManagerOptions"
) -> None:
    if not root.exists():
        return
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(checkpoint_storage.literal_path(root), options=options) as manager:
        for saved in manager.all_steps():
            if saved > step:
                manager.delete(saved)
