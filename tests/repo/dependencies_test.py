"""pyproject.toml declares what the library imports, no more and no less."""

import itertools
import re
import sys

import pytest

from tests.repo import source

# Distribution names that differ from the module they bring; lower case on both sides.
MODULE_OF = {"pyyaml": "yaml", "orbax-checkpoint": "orbax", "pillow": "pil"}


def modules_of(requirements: list[str]) -> set[str]:
    names = {re.match(r"[A-Za-z0-9_.-]+", line).group().lower() for line in requirements}
    return {MODULE_OF.get(name, name.replace("-", "_")) for name in names}


def modules_of_extras() -> set[str]:
    """Return what the extras bring besides JAX for other devices, spelt as it is imported."""
    extras = source.pyproject()["project"]["optional-dependencies"]
    found = modules_of([line for name, lines in extras.items() if name != "dev" for line in lines])
    spelt = {"pil": "PIL", "tensorboardx": "tensorboardX"}
    return {spelt.get(name, name) for name in found - {"jax"}}


def third_party_imports() -> set[str]:
    tops = {
        name.partition(".")[0].lower()
        for path in source.python_files("tunix")
        for name, _ in source.imported_modules(source.tree_of(path))
    }
    return tops - set(sys.stdlib_module_names) - {"tunix"}


def test_every_import_is_declared():
    required = modules_of(source.pyproject()["project"]["dependencies"])
    optional = {name.lower() for name in modules_of_extras()}
    assert third_party_imports() <= required | optional


def test_every_declared_dependency_is_imported():
    assert modules_of(source.pyproject()["project"]["dependencies"]) <= third_party_imports()


def test_an_upper_bound_has_its_reason_on_the_line_above():
    lines = (source.ROOT / "pyproject.toml").read_text().splitlines()
    assert not [
        line
        for above, line in itertools.pairwise(lines)
        if re.match(r' *"[\w\[\]-]+[^"]*<', line) and not above.strip().startswith("#")
    ]


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-3.12.txt"])
def test_constraints_pin_every_dependency_exactly(name):
    lines = (source.ROOT / name).read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins)
    project = source.pyproject()["project"]
    wanted = modules_of(project["dependencies"] + project["optional-dependencies"]["dev"])
    assert wanted <= modules_of(pins)


def test_the_dev_tools_bring_the_extras_that_tests_of_whole_runs_use():
    dev = modules_of(source.pyproject()["project"]["optional-dependencies"]["dev"])
    assert {"gguf", "matplotlib", "tensorboardx"} <= dev


def test_make_installs_what_the_quickstart_needs():
    makefile = (source.ROOT / "Makefile").read_text()
    extras = re.search(r"^EXTRAS := (.*)$", makefile, re.MULTILINE).group(1).split(",")
    assert set(extras) <= set(source.pyproject()["project"]["optional-dependencies"])
    assert {"gguf", "plots", "tensorboard"} <= set(extras)
