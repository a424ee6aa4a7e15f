"""Downloads go through the ordinary libraries; what fails says what to do."""

import sys
import types

import fsspec
import pytest
from fsspec.implementations import dirfs, local

from tests import tiny_llama
from tunix.models import automodel, downloads, sources

HANDLE = "owner/model/transformers/1b/2"
ADDRESS = "gs://bucket/models/tiny"


def error_of(function, *arguments):
    with pytest.raises(downloads.SourceError) as error:
        function(*arguments)
    return str(error.value)


@pytest.fixture
def kaggle(monkeypatch):
    """Return a list of what was asked of a stand-in for ``kagglehub``, and where it looks."""
    calls = []
    library = types.ModuleType("kagglehub")
    library.exceptions = types.ModuleType("kagglehub.exceptions")
    for name in ("BackendError", "CredentialError", "NotFoundError", "UnauthenticatedError"):
        setattr(library.exceptions, name, type(name, (Exception,), {}))

    def model_download(handle, *, output_dir=None):
        calls.append((handle, output_dir))
        if library.refusal is not None:
            raise library.refusal
        return library.folder

    library.model_download, library.refusal, library.folder = model_download, None, None
    monkeypatch.setitem(sys.modules, "kagglehub", library)
    monkeypatch.setitem(sys.modules, "kagglehub.exceptions", library.exceptions)
    return library, calls


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Return the folder of a bucket that holds the tiny model, and what was fetched of it."""
    folder = tmp_path / "cloud" / "bucket" / "models" / "tiny"
    folder.mkdir(parents=True)
    tiny_llama.write_model(folder)
    (folder / "extra").mkdir()
    (folder / "extra" / "notes.txt").write_text("notes")
    fetched = []

    class Cloud(dirfs.DirFileSystem):
        def get_file(self, path, target, **options):
            fetched.append(path)
            super().get_file(path, target, **options)

    def filesystem(protocol):
        assert protocol == "gcs"
        return Cloud(path=str(tmp_path / "cloud"), fs=local.LocalFileSystem())

    monkeypatch.setattr(fsspec, "filesystem", filesystem)
    monkeypatch.setenv(downloads.CACHE_VARIABLE, str(tmp_path / "cache"))
    return folder, fetched


def test_a_kaggle_model_is_loaded_from_where_the_library_puts_it(kaggle, tiny_model):
    library, calls = kaggle
    library.folder = tiny_model
    model, path = automodel.AutoModel.from_pretrained(
        "tiny",
        model_source=sources.ModelSource.KAGGLE,
        model_path=HANDLE,
        model_download_path="there",
    )
    assert model.num_embed == 258
    assert path == tiny_model
    assert calls == [(HANDLE, "there")]


@pytest.mark.parametrize("handle", ["google/gemma", "a/b/c/d/latest", "", "/a/b/c"])
def test_what_is_no_kaggle_handle_is_not_asked_for(handle, kaggle):
    assert "expected OWNER/MODEL/FRAMEWORK/VARIATION" in error_of(
        downloads.from_kaggle, handle, None
    )
    assert kaggle[1] == []


@pytest.mark.parametrize("refusal", ["BackendError", "UnauthenticatedError"])
def test_what_kaggle_refuses_says_what_to_do(refusal, kaggle):
    library, _ = kaggle
    library.refusal = getattr(library.exceptions, refusal)("403 forbidden\nlong story")
    message = error_of(downloads.from_kaggle, HANDLE, None)
    for part in (HANDLE, "403 forbidden", "KAGGLE_KEY", "licence", "path of their directory"):
        assert part in message
    assert "long story" not in message


def test_a_model_of_cloud_storage_is_copied_once_and_loaded(bucket, tmp_path):
    folder, fetched = bucket
    model, path = automodel.AutoModel.from_pretrained(ADDRESS)
    assert model.num_embed == 258
    assert path == str(tmp_path / "cache" / "gcs" / "bucket" / "models" / "tiny")
    copied = {file.relative_to(path) for file in (tmp_path / "cache").rglob("*") if file.is_file()}
    assert copied == {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}
    count = len(fetched)
    assert count == len(copied)
    downloads.from_gcs(ADDRESS + "/", None)
    assert len(fetched) == count


def test_a_file_that_was_cut_short_is_fetched_again(bucket, tmp_path):
    folder, fetched = bucket
    there = tmp_path / "there"
    downloads.from_gcs(ADDRESS, str(there))
    fetched.clear()
    (there / "model.safetensors").write_bytes(b"begin")
    downloads.from_gcs(ADDRESS, str(there))
    assert fetched == ["bucket/models/tiny/model.safetensors"]
    assert (there / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_an_address_without_files_is_an_error(bucket):
    assert "holds no files" in error_of(downloads.from_gcs, "gs://bucket/other", None)
    for address in ("bucket/models", "gs://bucket", "gs:///x", "s3://bucket/x"):
        assert "expected gs://BUCKET/PATH" in error_of(downloads.from_gcs, address, None)


def test_what_cloud_storage_refuses_says_what_to_do(monkeypatch):
    class Refuses:
        def find(self, *_, **__):
            raise PermissionError("anonymous caller\nlong story")

    monkeypatch.setattr(fsspec, "filesystem", lambda _: Refuses())
    message = error_of(downloads.from_gcs, ADDRESS, None)
    for part in (ADDRESS, "anonymous caller", "gcloud auth application-default login"):
        assert part in message
    assert "long story" not in message


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    assert "pip install 'tunix[kaggle]'" in error_of(downloads.from_kaggle, HANDLE, None)

    def filesystem(protocol):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "filesystem", filesystem)
    assert "pip install 'tunix[gcs]'" in error_of(downloads.from_gcs, ADDRESS, None)
