"""From settings to the objects they describe, for every command."""

import datetime
import itertools
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import rich.console
from flax import nnx

from tunix.cli.schemas import schema
from tunix.models import automodel, lora, quantized
from tunix.models.hf import hf_files
from tunix.models.transformer import decoder
from tunix.sft import memory_estimate, metrics_logger, run_directory
from tunix.tokenizers import model_tokenizer, tokenizer_adapter
from tunix.utils import config as config_lib

_LOG = logging.getLogger(__name__)


def make_run_directory(chosen: str | None, name: str) -> run_directory.RunDirectory:
    """Return the run's directory: the chosen one, or a new one below ``runs/``."""
    if chosen is not None:
        return run_directory.RunDirectory(chosen)
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    path = pathlib.Path("runs") / f"{name}-{now}"
    for number in itertools.count(2):
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:  # another run began in the same second
            path = path.with_name(f"{name}-{now}-{number}")
    return run_directory.RunDirectory(path)


def make_mesh(options: schema.MeshOptions | None) -> jax.sharding.Mesh | None:
    """Return the mesh over all devices, or None for a single device.

    Raises:
        ConfigError: there are more or fewer devices than the mesh has places.
    """
    if options is None:
        return None
    places, devices = int(np.prod(options.shape)), jax.devices()
    if places != len(devices):
        problem = (
            f"shape {list(options.shape)} has {places} places, but there are {len(devices)} "
            f"{devices[0].platform} devices"
        )
        raise config_lib.ConfigError("model_config.mesh", [problem])
    return jax.make_mesh(options.shape, options.axis_names)


def make_model(
    options: schema.ModelOptions, mesh: jax.sharding.Mesh | None
) -> tuple[nnx.Module, str]:
    """Return the model, with adapters if the settings ask for them, and the path of its files."""
    model, path = automodel.AutoModel.from_pretrained(
        options.model_id,
        mesh,
        model_source=automodel.ModelSource(options.model_source),
        model_path=options.model_path,
        model_download_path=options.model_download_path,
        dtype=options.dtype,
        precision=options.precision,
        remat=options.remat,
    )
    adapters = options.lora_config
    if adapters is not None:
        if adapters.weight_qtype is not None:
            quantized.quantize_model(model, adapters.weight_qtype, block=adapters.tile_size)
        lora.apply_lora(model, adapters, rngs=nnx.Rngs(options.rng_seed))
    return model, path


def make_tokenizer(
    options: schema.TokenizerOptions,
    model: nnx.Module,
    model_path: str,
    *,
    date: datetime.date | None = None,
) -> tokenizer_adapter.TokenizerAdapter:
    """Return the tokenizer: the model's own unless the settings name another.

    It refuses texts with tokens for which the model has no embedding. A chat template that asks
    for today's date gets ``date``.

    Raises:
        TokenIdError: If the token that ends a text is one.
    """
    tokenizer = tokenizer_adapter.load_tokenizer(options.tokenizer_path or model_path, date=date)
    assert isinstance(model, decoder.Decoder)
    return model_tokenizer.ModelTokenizer(tokenizer, model.num_embed)


def report_context(path: str, model: nnx.Module, longest: int, settings: str) -> None:
    """Warn of texts that are longer than those a model was made for.

    Args:
        path: Its files.
        model: A decoder.
        longest: Tokens of the longest text that it is to read or write.
        settings: What bounds them.
    """
    most = hf_files.max_positions(pathlib.Path(path))
    assert isinstance(model, decoder.Decoder)
    scaling = model.config.rope_scaling
    if most is not None and scaling is not None and scaling.kind != "llama3":
        plain = most if scaling.kind == "linear" else scaling.original_max_position
        most = max(most, int(scaling.factor * plain))
    if most is not None and longest > most:
        _LOG.warning(
            "texts have up to %d tokens, and the model was made for %d (max_position_embeddings in "
            "%s): what it computes beyond them is of little use; lower %s, or take a model that "
            "reads longer texts",
            longest,
            most,
            path,
            settings,
        )


def places(options: schema.LoopOptions, directory: run_directory.RunDirectory) -> dict[str, Any]:
    """Return what a trainer is told of the run's directory: where checkpoints and metrics go."""
    checkpointing = checkpointing_options(options.checkpointing_options)
    return {
        "checkpoint_root_directory": None if checkpointing is None else str(directory.checkpoints),
        "checkpointing_options": checkpointing,
        "metrics_logging_options": metrics_logger.MetricsLoggerOptions.composed(
            options.metrics_logging_options, log_dir=str(directory.path)
        ),
    }


def checkpointing_options(
    options: schema.CheckpointingOptions | None,
) -> ocp.CheckpointManagerOptions | None:
    """Return how often to save and how much to keep."""
    if options is None:
        return None
    if options.save_interval_seconds is not None:
        by_time = ocp.checkpoint_managers.ContinuousCheckpointingPolicy(
            minimum_interval_secs=options.save_interval_seconds
        )
        return ocp.CheckpointManagerOptions(
            save_decision_policy=by_time, max_to_keep=options.max_to_keep
        )
    return ocp.CheckpointManagerOptions(
        save_interval_steps=options.save_interval_steps, max_to_keep=options.max_to_keep
    )


def count_parameters(model: nnx.Module) -> tuple[int, int]:
    """Return how many parameters the model has, and how many of them are trained."""
    total = _size(nnx.state(model, nnx.Param)) + quantized.num_weights(model)
    adapters = _size(nnx.state(model, nnx.LoRAParam))
    return total, adapters or total


def report_memory(
    found: memory_estimate.MemoryEstimate,
    out: rich.console.Console,
    remedies: Sequence[str] = memory_estimate.REMEDIES,
) -> None:
    """Say what training will take, and what to do if that is more than there is."""
    out.print(f"memory     {found}")
    problem = memory_estimate.warning(found, memory_estimate.available_bytes(), remedies)
    if problem is not None:
        out.print(f"warning    {problem}", style="yellow")


def _size(state: nnx.State) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(state))
