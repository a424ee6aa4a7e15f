"""Which weights of a run are meant: the last, those of the best evaluation, or their average."""

import pathlib
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from tunix.cli import config as cli_config
from tunix.sft import checkpoint_manager
from tunix.sft.checkpoints import best_checkpoint
from tunix.utils import config as config_lib

Weights = Literal["last", "best", "ema"]
CHOICES: tuple[Weights, ...] = get_args(Weights)
HELP = (
    "last: of the checkpoint (default); best: of the checkpoint with the best evaluation, in a run "
    "with training_config.keep_best; ema: the average in the checkpoint, in a run with "
    "training_config.ema_decay"
)

_SETTINGS = {"best": "keep_best", "ema": "ema_decay"}


def require(config: pathlib.Path, weights: Weights) -> None:
    """Check that a run keeps these weights.

    Args:
        config: The run's settings.
        weights: What is wanted.

    Raises:
        ConfigError: If it does not; says which it keeps.
    """
    loop = _loop(config)
    kept = [name for name in CHOICES if name == "last" or loop.get(_SETTINGS[name]) is not None]
    if weights not in kept:
        problem = (
            f"--weights {weights}: the run keeps none, as training_config.{_SETTINGS[weights]} is "
            f"not set in {config}; there are {kept}"
        )
        raise config_lib.ConfigError("command line", [problem])


def best_step(config: pathlib.Path, checkpoints: pathlib.Path, *, chosen: int | None) -> int:
    """Return the step of the best evaluation, by the run's own metric.

    Args:
        config: Settings of a run that keeps the best.
        checkpoints: Directory of its checkpoints.
        chosen: A step that the user has named, too.

    Raises:
        ConfigError: If another step was named, or no checkpoint has been evaluated.
    """
    best: Any = _loop(config)["keep_best"]
    read_only = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)
    options = best_checkpoint.keep_best(
        read_only, num=best["num"], metric=best["metric"], mode=best["mode"]
    )
    manager = checkpoint_manager.CheckpointManager(checkpoints, options)
    try:
        step = manager.best_step()
    finally:
        manager.close()
    if step is None:
        problem = (
            f"--weights best: no checkpoint in {checkpoints} was saved with an evaluation; there "
            "is last"
        )
        raise config_lib.ConfigError("command line", [problem])
    if chosen not in (None, step):
        problem = f"--weights best is step {step}, and step {chosen} is named, too; give one"
        raise config_lib.ConfigError("command line", [problem])
    return step


def read_average(
    manager: checkpoint_manager.CheckpointManager, step: int, like: dict[str, Any]
) -> dict[str, Any]:
    """Return the average of the parameters that is kept in a checkpoint.

    Args:
        manager: Where the checkpoints are.
        step: A saved step.
        like: The parameters, as ``ShapeDtypeStruct``; they decide shapes, dtypes and placement.

    Raises:
        CheckpointMismatchError: Listing every array of the average that is missing or differs.
    """
    stored = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding), like
    )
    arrays, _ = manager.restore_state(step, {"optimizer": {"average": stored}}, partial=True)
    return jax.tree.map(lambda x, want: x.astype(want.dtype), arrays["optimizer"]["average"], like)


def _loop(config: pathlib.Path) -> dict[str, Any]:
    """Return ``training_config`` of a run; empty for those of reinforcement learning."""
    return cli_config.read_saved(config, "training_config")["training_config"] or {}
