"""Saves a model as a Hugging Face directory, which transformers and all that follow it can load."""

import contextlib
import functools
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tunix.models import families, lora, safetensors_writer, weights
from tunix.models.hf import hf_config, hf_files, model_card, score_head
from tunix.models.transformer import config as config_lib
from tunix.models.transformer import decoder, projection

CARD_NAME = "README.md"

TokenizerWriter = Callable[[pathlib.Path, pathlib.Path], None]
"""``write(source, folder)`` puts the tokenizer of the model at ``source`` into ``folder``."""


class ExportError(ValueError):
    """A model that cannot be saved where or as it was asked."""


def save_pretrained(
    model: nnx.Module,
    directory: str | pathlib.Path,
    *,
    source: str | pathlib.Path | None = None,
    dtype: DTypeLike | None = None,
    max_shard_size: str | int = "5GB",
    card: model_card.ModelCard | None = None,
    write_tokenizer: TokenizerWriter | None = None,
    allow_non_finite: bool = False,
) -> pathlib.Path:
    """Save ``model`` with its config, tokenizer and a model card, and return the directory.

    The directory appears when it is complete: everything is written beside it first. Memory
    holds one tensor at a time; a sharded one is gathered when its turn comes.

    Args:
        model: A model of any family, scanned or not, on one device or many.
        directory: Where to; it must not exist, or be empty.
        source: Directory or GGUF file that the model was loaded from. Tokenizer, chat template,
            special ids and generation settings are copied from it; without it there are none.
        dtype: Of the files; by default that of the parameters.
        max_shard_size: Largest file, e.g. ``"5GB"`` or a number of bytes.
        card: What to say in ``README.md``.
        write_tokenizer: How to write the tokenizer, where copying files is not enough: for a GGUF
            file, pass :func:`tunix.tokenizers.tokenizer_files.write`.
        allow_non_finite: Whether weights may be NaN or infinite, as those of a failed training.

    Raises:
        ExportError: If the directory is not empty, the disk has no room, adapters are not merged,
            or a GGUF file is given without ``write_tokenizer``.
        NonFiniteError: If weights are NaN or infinite.
        ConfigError: If the family's ``config.json`` cannot say what the model's config says.
        WeightsError: If a parameter has no Hugging Face name.
    """
    if any(module.adapter or module.parked for _, module in lora.iter_projections(model)):
        raise ExportError(
            "the model has LoRA adapters, which a full model has no place for; use save_merged to "
            "add them to the weights of a copy, or save the adapters alone"
        )
    return _save(
        model,
        directory,
        source=source,
        dtype=dtype,
        max_shard_size=max_shard_size,
        card=card,
        write_tokenizer=write_tokenizer,
        allow_non_finite=allow_non_finite,
    )


def save_merged(
    model: nnx.Module,
    directory: str | pathlib.Path,
    *,
    source: str | pathlib.Path | None = None,
    dtype: DTypeLike | None = None,
    max_shard_size: str | int = "5GB",
    card: model_card.ModelCard | None = None,
    write_tokenizer: TokenizerWriter | None = None,
    allow_non_finite: bool = False,
) -> pathlib.Path:
    """Save ``model`` with its adapters added to its weights; the model itself does not change.

    Weights are merged layer by layer as they are written, quantised ones become dense. The
    arguments are those of :func:`save_pretrained`.

    Raises:
        ExportError: As :func:`save_pretrained`, and if the model has no adapters.
    """
    if not lora.is_lora_enabled(model):
        raise ExportError("the model has no LoRA adapters to merge; use save_pretrained")
    return _save(
        model,
        directory,
        source=source,
        dtype=dtype,
        max_shard_size=max_shard_size,
        card=card,
        write_tokenizer=write_tokenizer,
        allow_non_finite=allow_non_finite,
    )


def save_with_score(
    model: nnx.Module,
    score: Float[Array, " D"],
    directory: str | pathlib.Path,
    *,
    source: str | pathlib.Path | None = None,
    dtype: DTypeLike | None = None,
    max_shard_size: str | int = "5GB",
    card: model_card.ModelCard | None = None,
    write_tokenizer: TokenizerWriter | None = None,
    allow_non_finite: bool = False,
    pad_token_id: int | None = None,
) -> pathlib.Path:
    """Save a reward model: ``score`` in place of the output head, adapters merged.

    It is what transformers calls ``AutoModelForSequenceClassification`` with one label. The other
    arguments are those of :func:`save_pretrained`.

    Args:
        model: The decoder whose last hidden states are scored.
        score: What they are multiplied with.
        pad_token_id: Transformers scores the last token that is not this one. It must be one that
            ends no text, and the tokenizer's padding; by default that of the config of ``source``.
            :mod:`tunix.tokenizers.pad_token` chooses it and tells the tokenizer.

    Raises:
        ExportError: As :func:`save_pretrained`, and if no padding token is known, or it ends texts.
    """
    return _save(
        model,
        directory,
        source=source,
        dtype=dtype,
        max_shard_size=max_shard_size,
        card=card,
        write_tokenizer=write_tokenizer,
        allow_non_finite=allow_non_finite,
        score=score_head.Score(score, pad_token_id),
    )


def dense_parameters(model: decoder.Decoder) -> dict[str, weights.Parameter]:
    """Return the parameters of ``model`` as they would be with its adapters merged.

    Quantised matrices become dense ones of the config's dtype, and adapters that are parked are
    not part of them. A layer is merged when it is read.
    """
    parameters = weights.parameters_of(model)
    for path, module in lora.iter_projections(model):
        is_quantized = isinstance(module.w, projection.QuantizedWeight)
        if not is_quantized and module.adapter is None and not module.parked:
            continue
        own = [name for name in parameters if name.startswith(f"{path}.")]
        for name in own:
            if name != f"{path}.b":
                del parameters[name]
        dtype = np.dtype(model.config.dtype if is_quantized else module.dense_weight().dtype)
        read = functools.partial(_merged_layer, module)
        parameters[f"{path}.w"] = weights.Parameter(module.weight_shape, dtype, read)
    return parameters


def _merged_layer(module: projection.Projection, index: tuple[int, ...]) -> jax.Array:
    """Return the merged matrix, of a stacked module that of the layer ``index``."""
    if not index:
        return module.merged_weight()
    graphdef, state = nnx.split(module)
    layer = jax.tree.map(lambda leaf: leaf[index], state)
    return nnx.merge(graphdef, layer).merged_weight()


def _save(
    model: nnx.Module,
    directory: str | pathlib.Path,
    *,
    source: str | pathlib.Path | None,
    dtype: DTypeLike | None,
    max_shard_size: str | int,
    card: model_card.ModelCard | None,
    write_tokenizer: TokenizerWriter | None,
    allow_non_finite: bool,
    score: score_head.Score | None = None,
) -> pathlib.Path:
    """Write all files; every check comes before the first byte."""
    assert isinstance(model, decoder.Decoder)
    target = pathlib.Path(directory).expanduser().absolute()
    origin = None if source is None else _existing(source)
    if origin is not None and origin.is_file() and write_tokenizer is None:
        raise ExportError(
            f"{origin}: holds its tokenizer in another form than files; pass "
            "write_tokenizer=tunix.tokenizers.tokenizer_files.write"
        )
    stored = model.config.param_dtype if dtype is None else jnp.dtype(dtype).name
    if stored not in config_lib.PARAM_DTYPES:
        raise ExportError(f"dtype must be one of {list(config_lib.PARAM_DTYPES)}, got {stored!r}")
    family = families.family_of_model(model)
    config = hf_files.make_config(family, model.config, stored, origin)
    table = family.weights_of_files(model.config)
    tensors: Any = weights.export_tensors(model, table, parameters=dense_parameters(model))
    if score is not None:
        config = score_head.make_config(config, score.pad_token_id, _ends(origin, config))
        tensors = score_head.ScoredTensors(tensors, score.weight)
    override = None if dtype is None else np.dtype(jnp.dtype(dtype))
    specs = {
        name: (shape, own if override is None else override)
        for name, (shape, own) in tensors.tensors.items()
    }
    max_shard_bytes = safetensors_writer.parse_size(max_shard_size)
    num_parameters = sum(math.prod(shape) for shape, _ in specs.values())
    text = (card or model_card.ModelCard()).render(
        target.name, num_parameters=num_parameters, dtype=stored
    )
    with new_directory(target, sum(map(safetensors_writer.num_bytes, specs.values()))) as folder:
        hf_files.write_json(folder / hf_config.CONFIG_NAME, config)
        if origin is not None:
            hf_files.write_generation_config(origin, folder)
            (write_tokenizer or hf_files.copy_tokenizer)(origin, folder)
        (folder / CARD_NAME).write_text(text, encoding="utf-8")
        safetensors_writer.write(
            folder,
            specs,
            tensors,
            max_shard_bytes=max_shard_bytes,
            allow_non_finite=allow_non_finite,
        )
    return target


@contextlib.contextmanager
def new_directory(target: pathlib.Path, num_bytes: int) -> Iterator[pathlib.Path]:
    """Give a folder to write into, which becomes ``target`` on success and goes on failure.

    Raises:
        ExportError: If ``target`` is a file or not empty, or ``num_bytes`` do not fit on the disk.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ExportError(f"{target}: already there and not an empty directory; choose another")
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < num_bytes:
        raise ExportError(
            f"{target}: the model takes {num_bytes / 1e6:.1f} MB and {free / 1e6:.1f} MB are free; "
            "free some space, choose another place, or dtype bfloat16 (--dtype bfloat16)"
        )
    folder = target.with_name(f".{target.name}.partial-{os.getpid()}")
    folder.mkdir()
    try:
        yield folder
        os.replace(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _ends(origin: pathlib.Path | None, config: Mapping[str, Any]) -> set[int]:
    """Return the ids that end texts, as far as the model's own files say."""
    generation = {} if origin is None else hf_files.read_generation_config(origin)
    found = (settings.get("eos_token_id") for settings in (config, generation))
    return {i for ids in found for i in (ids if isinstance(ids, list) else [ids]) if i is not None}


def _existing(source: str | pathlib.Path) -> pathlib.Path:
    path = pathlib.Path(source).expanduser()
    if not path.exists():
        raise ExportError(
            f"{path}: the model's original files are not there; say where they are now: --model "
            "PATH (in Python source=PATH, or source=None to write no tokenizer)"
        )
    return path
