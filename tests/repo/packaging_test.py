"""What a package index shows and what a source distribution holds."""

import email
import re
import shutil
import subprocess
import sys

import pytest

from tests.repo import source

LINK = re.compile(r"\]\(([^)]+)\)")


@pytest.fixture(scope="module")
def description(tmp_path_factory):
    """Return the README as the metadata of the package holds it."""
    folder = tmp_path_factory.mktemp("build")
    for name in ("tunix", "out"):
        (folder / name).mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "tunix/version.py"):
        shutil.copy(source.ROOT / name, folder / name)
    command = [sys.executable, "setup.py", "-q", "dist_info", "--output-dir", "out"]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    (path,) = folder.glob("out/*.dist-info/METADATA")
    message = email.message_from_string(path.read_text(encoding="utf-8"))
    assert message["Description-Content-Type"] == "text/markdown"
    return message.get_payload()


def test_every_link_of_the_readme_on_an_index_is_absolute(description):
    targets = LINK.findall(description)
    assert "https://github.com/google/tunix" in targets
    assert not [target for target in targets if not target.startswith("https://")]


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param("All keys (`docs/reference/config.md`)", id="a text keeps its path"),
        pytest.param("`examples/grpo_loop.py` and", id="a path is said once"),
        pytest.param("`CONTRIBUTING.md`: `make test`", id="a file at the top"),
    ],
)
def test_a_link_to_a_file_becomes_its_path(description, shown):
    assert shown in description


def test_what_the_readme_links_to_exists_and_is_in_a_source_distribution():
    grafted = re.findall(r"^graft (\S+)", (source.ROOT / "MANIFEST.in").read_text(), re.MULTILINE)
    included = (source.ROOT / "MANIFEST.in").read_text()
    targets = [
        target.partition("#")[0]
        for target in LINK.findall((source.ROOT / "README.md").read_text())
        if not target.startswith(("https://", "#"))
    ]
    assert len(targets) > 10
    for target in targets:
        assert (source.ROOT / target).exists(), target
        assert target.partition("/")[0] in grafted or target in included, target
