"""Finds the checkpoint that a user means and builds the trained model from it and its base."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx

from tunix.cli import config
from tunix.cli.loading import build
from tunix.cli.running import run_weights
from tunix.cli.schemas import schema, structure
from tunix.models import automodel, sources, weight_table
from tunix.models import weights as weights_lib
from tunix.models.transformer import decoder
from tunix.rl.objectives import shared_critic
from tunix.sft import checkpoint_manager
from tunix.sft.checkpoints import checkpoint_storage
from tunix.sft.dpo import reward_model
from tunix.utils import config as config_lib

_CHECKPOINTS, _CONFIG, _PARAMS = "checkpoints", "config.yaml", "params"
_READ = ("model_config", "tokenizer_config", "ppo_config", "reward_config")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One saved step of a run, and what the run says of its model."""

    run: pathlib.Path
    step: int
    options: schema.ModelOptions
    tokenizer_path: str | None
    """Where the run took another tokenizer than the model's own."""
    has_value_head: bool = False
    """Whether the actor was its own critic."""
    weights: run_weights.Weights = "last"
    is_reward_model: bool = False
    """Whether the run trained a score instead of the next token."""


def is_run(path: pathlib.Path) -> bool:
    """Return whether ``path`` is a run, its checkpoints or one of them."""
    return (run_of(path.expanduser().absolute()) / _CONFIG).is_file()


def find(
    path: pathlib.Path,
    step: int | None,
    model: str | None,
    weights: run_weights.Weights = "last",
) -> Checkpoint:
    """Return the checkpoint that ``path`` and ``step`` stand for.

    Args:
        path: Directory of a run, its ``checkpoints`` or one step in there.
        step: Which step of a run; the latest by default.
        model: Where the base model is now, if not where the run says.
        weights: Which of those that the run keeps.

    Raises:
        FileNotFoundError: If there is no such run, checkpoint or step.
        ConfigError: If the run's settings cannot be read, a step is named twice, or the run does
            not keep these weights.
    """
    path = path.expanduser().absolute()
    run = run_of(path)
    if run == path.parent.parent:
        if step not in (None, int(path.name)):
            problem = f"--step {step} and {path} name different steps; give one of them"
            raise config_lib.ConfigError("command line", [problem])
        step = int(path.name)
    if not (run / _CONFIG).is_file():
        raise FileNotFoundError(
            f"{path}: no run; expected a directory that tunix sft, dpo, reward, grpo or ppo wrote, "
            f"with {_CONFIG} and {_CHECKPOINTS}/, or one checkpoint in it ({_CHECKPOINTS}/STEP)"
        )
    options, tokenizer_path, heads = _settings(run / _CONFIG)
    if model is not None:
        options = dataclasses.replace(options, model_path=model, model_source="huggingface")
    run_weights.require(run / _CONFIG, weights)
    if weights == "best":
        step = run_weights.best_step(run / _CONFIG, run / _CHECKPOINTS, chosen=step)
    return Checkpoint(
        run=run,
        step=_step(run, step),
        weights=weights,
        options=options,
        tokenizer_path=tokenizer_path,
        **heads,
    )


def load(checkpoint: Checkpoint) -> tuple[decoder.Decoder, pathlib.Path]:
    """Return the trained model and the path of the files of its base.

    Of a base that was trained whole, only the settings are read.

    Raises:
        ConfigError: If the run trained a reward model.
        SourceError: If the base is no longer where the run says.
        CheckpointMismatchError: If base and checkpoint do not fit, listing every array.
    """
    if checkpoint.is_reward_model:
        problem = (
            "the run trained a reward model, which scores replies and writes none; tunix export "
            "writes what reward_model_config of tunix grpo takes"
        )
        raise config_lib.ConfigError(str(checkpoint.run), [problem])
    model, path = _base(checkpoint)
    if checkpoint.has_value_head:
        shared_critic.add_value_head(model)
    _restore(checkpoint, model)
    if checkpoint.has_value_head:
        shared_critic.remove_value_head(model)
    return model, path


def load_reward_model(checkpoint: Checkpoint) -> tuple[reward_model.RewardModel, pathlib.Path]:
    """Return the same of a run of ``tunix reward``; errors as of :func:`load`."""
    base, path = _base(checkpoint)
    model = reward_model.RewardModel(base, rngs=nnx.Rngs(0))
    _restore(checkpoint, model)
    return model, path


def require_finite(checkpoint: Checkpoint, model: nnx.Module) -> None:
    """Check that a trained model can compute something.

    Raises:
        WeightsError: Naming every parameter that holds NaN or infinities.
    """
    state = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.LoRAParam)))
    bad = [
        f"parameter {weights_lib.dotted(path)} holds NaN or infinite numbers"
        for path, leaf in state
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not jnp.isfinite(leaf[...]).all()
    ]
    if bad:
        place = f"step {checkpoint.step} of {checkpoint.run} cannot be used"
        problems = [*weight_table.collapsed(bad), weights_lib.NON_FINITE_REMEDY]
        raise weight_table.WeightsError(place, problems)


def _base(checkpoint: Checkpoint) -> tuple[decoder.Decoder, pathlib.Path]:
    """Return what the run started from, without arrays where all of them were trained."""
    options = dataclasses.replace(checkpoint.options, mesh=None)
    try:
        if options.lora_config is not None:
            model, path = build.make_model(options, None)
        else:
            model, path = automodel.abstract_model(
                options.model_id,
                model_source=automodel.ModelSource(options.model_source),
                model_path=options.model_path,
                model_download_path=options.model_download_path,
                dtype=options.dtype,
                precision=options.precision,
            )
    except sources.SourceError as error:
        raise sources.SourceError(
            f"the base model of {checkpoint.run} cannot be found: {error}\n"
            "If it has moved, say where it is with --model"
        ) from error
    assert isinstance(model, decoder.Decoder)
    return model, pathlib.Path(path)


def _restore(checkpoint: Checkpoint, model: nnx.Module) -> None:
    """Let the model hold the arrays that were trained."""
    kind = nnx.Param if checkpoint.options.lora_config is None else nnx.LoRAParam
    like = nnx.to_pure_dict(nnx.state(model, kind))
    # The run may have had other devices.
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like)
    manager = checkpoint_manager.CheckpointManager(
        checkpoint.run / _CHECKPOINTS,
        ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False),
    )
    try:
        if checkpoint.weights == "ema":
            params = run_weights.read_average(manager, checkpoint.step, like)
        else:
            params = manager.restore_state(checkpoint.step, {_PARAMS: like})[0][_PARAMS]
    except checkpoint_storage.CheckpointDamagedError as error:
        remedy = f"; name one with --step {max(error.sound)}" if error.sound else ""
        raise checkpoint_storage.CheckpointDamagedError(
            error.subject, error.problems, error.sound, remedy
        ) from error
    finally:
        manager.close()
    nnx.update(model, params)


def run_of(path: pathlib.Path) -> pathlib.Path:
    """Return the directory of the run that ``path`` is, or is the checkpoints or a step of."""
    if path.parent.name == _CHECKPOINTS and path.name.isdigit():
        return path.parent.parent
    return path.parent if path.name == _CHECKPOINTS else path


def _settings(path: pathlib.Path) -> tuple[schema.ModelOptions, str | None, dict[str, bool]]:
    """Return the model's settings, the tokenizer's path, and which heads were added."""
    raw: Any = config.read_saved(path, *_READ)
    if not isinstance(raw.get("model_config"), dict):
        problem = "no model_config in it; expected the resolved settings of a run"
        raise config_lib.ConfigError(str(path), [problem])
    options = structure.structure(
        schema.ModelOptions, raw["model_config"], notes={}, source=str(path)
    )
    tokenizer_path = (raw.get("tokenizer_config") or {}).get("tokenizer_path")
    backbone = (raw.get("ppo_config") or {}).get("critic_backbone")
    heads = {
        "has_value_head": backbone == "shared",
        "is_reward_model": raw["reward_config"] is not None,
    }
    return options, tokenizer_path, heads


def _step(run: pathlib.Path, step: int | None) -> int:
    """Return the step, after checking that it has been saved."""
    root = run / _CHECKPOINTS
    found = root.iterdir() if root.is_dir() else ()
    saved = sorted(int(path.name) for path in found if path.name.isdigit() and path.is_dir())
    if not saved:
        raise FileNotFoundError(
            f"{root}: no complete checkpoint; the run saves every "
            "checkpointing_options.save_interval_steps steps and when it ends"
        )
    if step is not None and step not in saved:
        raise FileNotFoundError(f"{root}: no checkpoint of step {step}; there are {saved}")
    return saved[-1] if step is None else step
