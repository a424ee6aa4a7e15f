"""Fetches the files of a model: from the Hugging Face hub, Kaggle or Google Cloud Storage.

Each source needs a library of its own, imported when it is used. Nothing here knows what a
model is made of.
"""

import importlib
import os
import pathlib
import re
from collections.abc import Sequence

GCS_PREFIX = "gs://"
CACHE_VARIABLE = "TUNIX_CACHE"
"""Environment variable that moves the directory of what is fetched from Cloud Storage."""


class SourceError(ValueError):
    """A model that cannot be found."""


def from_hub(
    repository: str, download_path: str | None, files: Sequence[str], token: str | None
) -> pathlib.Path:
    """Return the directory of a repository of the Hugging Face hub.

    Args:
        repository: Its id.
        download_path: Where to put the files; the hub's own cache by default.
        files: Which files are wanted, as glob patterns.
        token: Access token; by default what ``hf auth`` has stored.

    Raises:
        SourceError: If the hub does not give it; says what was wanted and what to do.
    """
    import huggingface_hub  # 0.2 s that local models need not pay

    try:
        folder = huggingface_hub.snapshot_download(
            repository, allow_patterns=list(files), local_dir=download_path, token=token
        )
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{repository!r} is no local path, and the Hugging Face hub did not give it: "
            f"{_reason(error)}\n"
            f"Wanted: {', '.join(files)}. Check the id, the network and, for a gated model, your "
            "token (HF_TOKEN); or fetch the files elsewhere and give the path of their directory"
        ) from error
    return pathlib.Path(folder)


def from_kaggle(handle: str, download_path: str | None) -> pathlib.Path:
    """Return the directory of a model of Kaggle.

    Args:
        handle: ``OWNER/MODEL/FRAMEWORK/VARIATION``, with ``/VERSION`` behind it or the latest.
        download_path: Where to put the files; Kaggle's own cache by default.

    Raises:
        SourceError: If it is no handle, the library is missing or Kaggle does not give it.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+){3}(/\d+)?", handle):
        raise SourceError(
            f"{handle!r} is no handle of a Kaggle model; expected OWNER/MODEL/FRAMEWORK/VARIATION, "
            "with /VERSION behind it or not, e.g. google/gemma-3/transformers/gemma-3-1b-it"
        )
    try:
        kagglehub = importlib.import_module("kagglehub")
        exceptions = importlib.import_module("kagglehub.exceptions")
    except ImportError as error:
        raise SourceError(f"{handle!r}: {_missing('kagglehub', 'kaggle')}") from error
    refusals = (
        exceptions.BackendError,
        exceptions.CredentialError,
        exceptions.NotFoundError,
        exceptions.UnauthenticatedError,
    )
    try:
        return pathlib.Path(kagglehub.model_download(handle, output_dir=download_path))
    except (OSError, ValueError, *refusals) as error:
        raise SourceError(
            f"Kaggle did not give {handle!r}: {_reason(error)}\nCheck the handle, the network and "
            "your credentials (KAGGLE_USERNAME and KAGGLE_KEY, or ~/.kaggle/kaggle.json), and "
            "accept the model's licence on its page; or fetch the files elsewhere and give the "
            "path of their directory"
        ) from error


def from_gcs(address: str, download_path: str | None) -> pathlib.Path:
    """Return a local copy of a directory of Google Cloud Storage.

    A file that is there in full length is not fetched again.

    Args:
        address: ``gs://BUCKET/PATH``.
        download_path: Where to put the files; ``~/.cache/tunix/gcs/BUCKET/PATH`` by default, the
            beginning of which ``TUNIX_CACHE`` moves.

    Raises:
        SourceError: If it is no address, the library is missing, there is nothing or it may not
            be read.
    """
    if not re.fullmatch(GCS_PREFIX + r"[^/]+/.*[^/]/?", address):
        raise SourceError(f"{address!r} is no address of a directory; expected gs://BUCKET/PATH")
    remote = address.removeprefix(GCS_PREFIX).rstrip("/")
    folder = pathlib.Path(download_path or _cache() / "gcs" / remote)
    try:
        import fsspec

        system = fsspec.filesystem("gcs")
    except ImportError as error:
        raise SourceError(f"{address}: {_missing('gcsfs', 'gcs')}") from error
    try:
        found = system.find(remote, detail=True)
        for name, entry in found.items():
            path = folder / name.removeprefix(remote).lstrip("/")
            if not path.exists() or path.stat().st_size != entry["size"]:
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(path.name + ".partial")
                system.get_file(name, str(partial))
                os.replace(partial, path)
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{address} could not be copied to {folder}: {_reason(error)}\nCheck the address, the "
            "network and your credentials (`gcloud auth application-default login`)"
        ) from error
    if not found:
        raise SourceError(f"{address}: holds no files; check the address")
    return folder


def _cache() -> pathlib.Path:
    return pathlib.Path(os.environ.get(CACHE_VARIABLE, "~/.cache/tunix")).expanduser()


def _missing(library: str, extra: str) -> str:
    return f"needs the package {library}; pip install 'tunix[{extra}]'"


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
