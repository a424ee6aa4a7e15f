"""Nothing in the repository points outside of it."""

import re
import subprocess

import pytest

from tests.repo import source

# Assembled from parts, so that this file does not contain what it forbids.
FORBIDDEN = {
    "a path above the repository": re.compile(r"\.\./" + "shared"),
    "an absolute path of one machine": re.compile(
        r"(?<![\w.])/(?:" + "|".join(["work", "home", "Users", "root", "opt", "mnt"]) + r")/\w"
    ),
    "a temporary directory of one machine": re.compile("/tmp/" + r"w\b"),
    "the address of a package registry": re.compile("pypi" + r"\.org|/" + "simple/"),
}


def tracked_text_files():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=source.ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    for name in filter(None, listed):
        path = source.ROOT / name
        if path.is_file() and b"\0" not in (content := path.read_bytes()):
            yield name, content.decode()


@pytest.mark.skipif(not (source.ROOT / ".git").exists(), reason="a source distribution, no clone")
def test_no_file_names_a_place_outside_the_repository():
    problems = [
        f"{name}:{number}: {what}: {line.strip()[:100]}"
        for name, text in tracked_text_files()
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in FORBIDDEN.items()
        if pattern.search(line)
    ]
    assert not problems, "\n".join(problems)
