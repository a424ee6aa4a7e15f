"""One call from the name of a model to the model."""

import dataclasses
import enum
import importlib
import pathlib
import types
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from tunix.models import (
    families,
    gguf_loader,
    naming,
    safetensors_loader,
    safetensors_model,
    sources,
    weight_table,
    weights,
)
from tunix.models.hf import hf_config, score_head
from tunix.models.transformer import config as config_lib
from tunix.models.transformer import decoder
from tunix.utils import config, reference_names

ModelSource = sources.ModelSource


class ModelModule(enum.Enum):
    """The modules of a family's folder."""

    MODEL = "model"
    """Config presets and the model's class."""

    PARAMS = "params"
    """How files store its weights, and functions that load them."""

    PARAMS_SAFETENSORS = "params_safetensors"
    """Gemma only: the loader of safetensors files, where ``params`` reads another format too."""


class AutoModel:
    """Finds, checks and loads pre-trained models of any family."""

    @classmethod
    def from_pretrained(
        cls,
        model_id: str,
        mesh: Mesh | None = None,
        *,
        model_source: ModelSource = ModelSource.HUGGINGFACE,
        model_path: str | None = None,
        model_download_path: str | None = None,
        dtype: DTypeLike | None = None,
        precision: Literal["auto", "exact", "fast"] = "auto",
        remat: config_lib.Remat = "nothing_saveable",
        scan_layers: bool = True,
    ) -> tuple[decoder.Decoder, str]:
        """Return the model and the path of its files.

        Args:
            model_id: A Hugging Face directory, a ``.gguf`` file, ``package:NAME`` (the one
                model inside an installed Python package) or what the source calls the model:
                the id of a hub repository, a handle of Kaggle, an address ``gs://``.
            mesh: Where to put the parameters; one device without it.
            model_source: Where to look for what is not local.
            model_path: Path (or handle, or address) of the files, where ``model_id`` is only the
                model's name. The name then tells the architecture of a directory without
                ``config.json``.
            model_download_path: Where to put what is fetched; the source's own cache by default.
            dtype: Storage dtype of the parameters; float32 by default.
            precision: How matrices are multiplied, see :mod:`tunix.ops.dot`.
            remat: What the backward pass may keep of a layer instead of computing it again.
            scan_layers: One stacked layer (training) or a list of layers.

        Raises:
            SourceError: If there is no such model.
            ConfigError: If the model cannot be represented; lists every field that cannot.
            CheckpointFileError: If a file is missing, truncated or corrupt.
            WeightsError: If tensors and architecture do not fit; lists every tensor concerned.
        """
        path = sources.resolve(
            model_path or model_id, source=model_source, download_path=model_download_path
        )
        runtime = {"precision": precision, "remat": remat, "scan_layers": scan_layers}
        if dtype is not None:
            runtime["param_dtype"] = jnp.dtype(dtype).name
        family, model_config, source = _open(path, model_id, runtime)
        model = weights.load_model(
            family.model_class, model_config, family.weights, source, mesh=mesh
        )
        return model, str(path)


def call_model_config(model_name: str) -> config_lib.TransformerConfig:
    """Return the config preset that a model name stands for, e.g. ``llama3.1-8b``.

    Raises:
        NamingError: If the name belongs to no known family.
        ConfigError: If there is no such preset; the nearest one is suggested.
    """
    family = family_of_name(model_name)
    preset = naming.get_model_config_id(model_name)
    members = vars(family.config_class)
    presets = [name for name, member in members.items() if isinstance(member, classmethod)]
    if preset not in presets:
        problem = f"no preset {preset!r} for {model_name!r}; there are {presets}"
        raise config.ConfigError("model name", [problem + config.did_you_mean(preset, presets)])
    return getattr(family.config_class, preset)()


def get_model_module(model_name: str, module_type: ModelModule) -> types.ModuleType:
    """Return a module of the family that a model name belongs to, e.g. ``qwen3.params``.

    Raises:
        NamingError: If the name belongs to no known family.
        ConfigError: If its architecture cannot be built, or the family has no such module.
    """
    family_of_name(model_name)
    category = naming.get_model_config_category(model_name)
    folder = pathlib.Path(__file__).parent / category
    if not (folder / f"{module_type.value}.py").exists():
        there = [kind.value for kind in ModelModule if (folder / f"{kind.value}.py").exists()]
        problem = f"{category} has no module {module_type.value!r}; there are {there}"
        raise config.ConfigError("model name", [problem])
    return importlib.import_module(f"tunix.models.{category}.{module_type.value}")


def create_model_from_safe_tensors(
    model_name: str,
    file_dir: str | pathlib.Path,
    model_config: config_lib.TransformerConfig,
    mesh: Mesh | None = None,
    dtype: DTypeLike | None = None,
) -> decoder.Decoder:
    """Return the model in a directory of safetensors files, built as ``model_config``.

    Args:
        model_name: Tells the family, e.g. ``llama3.1-8b``.
        file_dir: The directory; a ``config.json`` in it is not looked at.
        model_config: Architecture and running of the model.
        mesh: Where to put the parameters; one device without it.
        dtype: Storage dtype, instead of ``model_config.param_dtype``.

    Raises:
        NamingError: If the name belongs to no known family.
        CheckpointFileError: If a file is missing, truncated or corrupt.
        WeightsError: If files and config do not fit, listing every tensor concerned.
    """
    family = family_of_name(model_name)
    load = safetensors_model.SafetensorsLoader(family.model_class, family.weights)
    return load(file_dir, model_config, mesh, dtype)


def abstract_model(
    model_id: str,
    *,
    model_source: ModelSource = ModelSource.HUGGINGFACE,
    model_path: str | None = None,
    model_download_path: str | None = None,
    dtype: DTypeLike | None = None,
    precision: Literal["auto", "exact", "fast"] = "auto",
) -> tuple[decoder.Decoder, str]:
    """Return a model without arrays, to be filled from a checkpoint, and the path of its files.

    The arguments are those of :meth:`AutoModel.from_pretrained`.
    """
    path = sources.resolve(
        model_path or model_id, source=model_source, download_path=model_download_path
    )
    runtime: dict[str, Any] = {"precision": precision}
    if dtype is not None:
        runtime["param_dtype"] = jnp.dtype(dtype).name
    family, model_config, _ = _open(path, model_id, runtime)
    model = nnx.eval_shape(lambda: family.model_class(model_config, rngs=nnx.Rngs(0)))
    return model, str(path)


def download_model(
    model_id_or_path: str,
    model_download_path: str | None = None,
    model_source: ModelSource = ModelSource.HUGGINGFACE,
) -> str:
    """Return the path of a model's files, fetched if they are not local.

    Raises:
        SourceError: If there is no such model.
    """
    return str(
        sources.resolve(model_id_or_path, source=model_source, download_path=model_download_path)
    )


def family_of_name(model_name: str) -> families.Family:
    """Return the family that a model name belongs to.

    Raises:
        NamingError: If the name belongs to no known family.
        ConfigError: If its architecture cannot be built.
    """
    category = naming.get_model_config_category(model_name)
    if category not in families.FAMILIES:
        problem = (
            f"{model_name!r} is of architecture {category!r}, which is not supported; there are "
            f"{list(families.FAMILIES)}"
        )
        raise config.ConfigError("model name", [problem])
    return families.FAMILIES[category]


def _open(
    path: pathlib.Path, model_id: str, runtime: dict[str, Any]
) -> tuple[families.Family, config_lib.TransformerConfig, weight_table.TensorSource]:
    """Return family, config and tensors of the checkpoint at ``path``."""
    if path.suffix == ".gguf" and path.is_file():
        checkpoint = gguf_loader.GGUFCheckpoint(path)
        raw, where = checkpoint.config, str(path)
        return (
            hf_config.family_of(raw, where=where),
            hf_config.config_from_hf(raw, where=where, **runtime),
            checkpoint,
        )
    config_file = path / hf_config.CONFIG_NAME
    if config_file.exists():
        raw, where = hf_config.read_config(config_file), str(config_file)
        family = hf_config.family_of(raw, where=where)
        model_config = hf_config.config_from_hf(raw, where=where, **runtime)
    else:
        family, model_config = _preset(path, model_id, runtime)
    source = safetensors_loader.SafetensorsDirectory(path)
    if score_head.SCORE in source.shapes:
        raise sources.SourceError(
            f"{path}: is a reward model ({score_head.SCORE} in place of an output head), which "
            "scores texts and writes none; give a language model here, and a reward model as "
            "reward_model_config.model_id of tunix grpo or ppo"
        )
    return family, model_config, source


def _preset(
    path: pathlib.Path, model_id: str, runtime: dict[str, Any]
) -> tuple[families.Family, config_lib.TransformerConfig]:
    """Return family and config of a directory that only has weights, from the model's name."""
    if not naming.is_known(model_id):
        raise sources.SourceError(
            f"{path}: has no {hf_config.CONFIG_NAME}, and {model_id!r} does not name a model that "
            "is known without it; add the file, or give the model's name as model_id and the "
            "directory as model_path"
        )
    name = naming.get_model_name_from_model_id(model_id)
    return family_of_name(name), dataclasses.replace(call_model_config(name), **runtime)


__getattr__ = reference_names.hints(__name__)
