"""Finds the checkpoint that a user means and builds the trained model from it and its base."""

import dataclasses
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
import yaml
from flax import nnx

from tunix.cli import build, schema, structure
from tunix.models import automodel, sources
from tunix.models.transformer import decoder
from tunix.sft import checkpoint_integrity as integrity
from tunix.sft import checkpoint_manager
from tunix.utils import config as config_lib

_CHECKPOINTS, _CONFIG, _PARAMS = "checkpoints", "config.yaml", "params"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One saved step of a run, and what the run says of its model."""

    run: pathlib.Path
    step: int
    options: schema.ModelOptions
    tokenizer_path: str | None
    """Where the run took another tokenizer than the model's own."""


def find(path: pathlib.Path, step: int | None, model: str | None) -> Checkpoint:
    """Return the checkpoint that ``path`` and ``step`` stand for.

    Args:
        path: Directory of a run, its ``checkpoints`` or one step in there.
        step: Which step of a run; the latest by default.
        model: Where the base model is now, if not where the run says.

    Raises:
        FileNotFoundError: If there is no such run, checkpoint or step.
        ConfigError: If the run's settings cannot be read, or a step is named twice.
    """
    path = path.expanduser().absolute()
    run = path
    if path.parent.name == _CHECKPOINTS and path.name.isdigit():
        if step not in (None, int(path.name)):
            problem = f"--step {step} and {path} name different steps; give one of them"
            raise config_lib.ConfigError("command line", [problem])
        run, step = path.parent.parent, int(path.name)
    elif path.name == _CHECKPOINTS:
        run = path.parent
    if not (run / _CONFIG).is_file():
        raise FileNotFoundError(
            f"{path}: no run; expected a directory that tunix sft, dpo or grpo wrote, with "
            f"{_CONFIG} and {_CHECKPOINTS}/, or one checkpoint in it ({_CHECKPOINTS}/STEP)"
        )
    options, tokenizer_path = _settings(run / _CONFIG)
    if model is not None:
        options = dataclasses.replace(options, model_path=model, model_source="huggingface")
    return Checkpoint(
        run=run, step=_step(run, step), options=options, tokenizer_path=tokenizer_path
    )


def load(checkpoint: Checkpoint) -> tuple[decoder.Decoder, pathlib.Path]:
    """Return the trained model and the path of the files of its base.

    Of a base that was trained whole, only the settings are read.

    Raises:
        SourceError: If the base is no longer where the run says.
        CheckpointMismatchError: If base and checkpoint do not fit, listing every array.
    """
    options = dataclasses.replace(checkpoint.options, mesh=None)
    adapters_only = options.lora_config is not None
    try:
        if adapters_only:
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
    like = nnx.to_pure_dict(nnx.state(model, nnx.LoRAParam if adapters_only else nnx.Param))
    # The run may have had other devices.
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like)
    manager = checkpoint_manager.CheckpointManager(
        checkpoint.run / _CHECKPOINTS,
        ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False),
    )
    try:
        arrays, _ = manager.restore_state(checkpoint.step, {_PARAMS: like})
    finally:
        manager.close()
    nnx.update(model, arrays[_PARAMS])
    return model, pathlib.Path(path)


def _settings(path: pathlib.Path) -> tuple[schema.ModelOptions, str | None]:
    raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(raw, dict) or not isinstance(raw.get("model_config"), dict):
        problem = "no model_config in it; expected the resolved settings of a run"
        raise config_lib.ConfigError(str(path), [problem])
    options = structure.structure(
        schema.ModelOptions, raw["model_config"], notes={}, source=str(path)
    )
    return options, (raw.get("tokenizer_config") or {}).get("tokenizer_path")


def _step(run: pathlib.Path, step: int | None) -> int:
    """Return the step, after checking that it has been saved."""
    root = run / _CHECKPOINTS
    found = root.iterdir() if root.is_dir() else ()
    saved = sorted(
        int(path.name) for path in found if path.name.isdigit() and integrity.is_complete(path)
    )
    if not saved:
        raise FileNotFoundError(
            f"{root}: no complete checkpoint; the run saves every "
            "checkpointing_options.save_interval_steps steps and when it ends"
        )
    if step is not None and step not in saved:
        raise FileNotFoundError(f"{root}: no checkpoint of step {step}; there are {saved}")
    return saved[-1] if step is None else step
