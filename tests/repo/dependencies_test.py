"""pyproject.toml declares what the library imports, no more and no less."""

import re
import sys

from tests.repo import source

# Distribution names that differ from the module they bring; lower case on both sides.
MODULE_OF = {"pyyaml": "yaml", "orbax-checkpoint": "orbax", "pillow": "pil"}


def modules_of(requirements: list[str]) -> set[str]:
    names = {re.match(r"[A-Za-z0-9_.-]+", line).group().lower() for line in requirements}
    return {MODULE_OF.get(name, name.replace("-", "_")) for name in names}


def third_party_imports() -> set[str]:
    tops = {
        name.partition(".")[0].lower()
        for path in source.python_files("tunix")
        for name, _ in source.imported_modules(source.tree_of(path))
    }
    return tops - set(sys.stdlib_module_names) - {"tunix"}


def test_every_import_is_declared():
    project = source.pyproject()["project"]
    extras = project["optional-dependencies"]
    not_for_users = ("dev", "docs")
    optional = modules_of(
        [line for name, lines in extras.items() if name not in not_for_users for line in lines]
    )
    assert third_party_imports() <= modules_of(project["dependencies"]) | optional


def test_every_declared_dependency_is_imported():
    assert modules_of(source.pyproject()["project"]["dependencies"]) <= third_party_imports()


def test_constraints_pin_every_dependency_exactly():
    lines = (source.ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins)
    project = source.pyproject()["project"]
    wanted = modules_of(project["dependencies"] + project["optional-dependencies"]["dev"])
    assert wanted <= modules_of(pins)
