"""The downloads under their other names."""

import pathlib

from tunix.models import downloads
from tunix.oss import utils


def test_each_asks_its_source(monkeypatch):
    calls = []

    def stand_in(name):
        def function(*arguments):
            calls.append((name, *arguments[:2]))
            return pathlib.Path(name)

        return function

    for name in ("from_hub", "from_kaggle", "from_gcs"):
        monkeypatch.setattr(downloads, name, stand_in(name))
    assert utils.hf_pipeline("org/model", "there") == "from_hub"
    assert utils.kaggle_pipeline("a/b/c/d", "there") == "from_kaggle"
    assert utils.load_file_from_gcs("gs://bucket/x", "there") == "from_gcs"
    assert calls == [
        ("from_hub", "org/model", "there"),
        ("from_kaggle", "a/b/c/d", "there"),
        ("from_gcs", "gs://bucket/x", "there"),
    ]


def test_a_local_path_is_not_copied():
    assert utils.load_file_from_gcs("/some/where") == "/some/where"
