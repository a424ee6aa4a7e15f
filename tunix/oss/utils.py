"""Downloads under the names that scripts written for google-tunix import."""

from tunix.models import downloads, sources


def load_file_from_gcs(file_dir: str, target_dir: str | None = None) -> str:
    """Return a local copy of ``gs://BUCKET/PATH``; a path that is local already is itself.

    Args:
        file_dir: What to copy.
        target_dir: Where to; by default as :func:`tunix.models.downloads.from_gcs` says.

    Raises:
        SourceError: If it cannot be copied.
    """
    if not file_dir.startswith(downloads.GCS_PREFIX):
        return file_dir
    return str(downloads.from_gcs(file_dir, target_dir))


def kaggle_pipeline(model_id: str, model_download_path: str | None = None) -> str:
    """Return the directory of a model of Kaggle.

    Args:
        model_id: ``OWNER/MODEL/FRAMEWORK/VARIATION``, with ``/VERSION`` or the latest.
        model_download_path: Where to put the files; Kaggle's own cache by default.

    Raises:
        SourceError: If Kaggle does not give it.
    """
    return str(downloads.from_kaggle(model_id, model_download_path))


def hf_pipeline(model_id: str, model_download_path: str | None = None) -> str:
    """Return the directory of a repository of the Hugging Face hub.

    Args:
        model_id: Its id.
        model_download_path: Where to put the files; the hub's own cache by default.

    Raises:
        SourceError: If the hub does not give it.
    """
    return str(downloads.from_hub(model_id, model_download_path, sources.MODEL_FILES, None))
