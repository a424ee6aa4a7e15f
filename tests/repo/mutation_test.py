"""The list of modules that `make mutants` breaks names what exists."""

import json

import pytest
import yaml

from tests.repo import source

FOLDER = source.ROOT / "scripts" / "mutation"
MODULES = yaml.safe_load((FOLDER / "modules.yaml").read_text())


@pytest.mark.parametrize("module", MODULES)
def test_a_listed_module_and_its_tests_exist(module):
    settings = MODULES[module]
    files = [module, *(test.partition("::")[0] for test in settings["tests"])]
    assert [file for file in files if not (source.ROOT / file).is_file()] == []
    assert set(settings) <= {"tests", "equivalent"}
    # Without what the line becomes, an entry would be every mutant of the line.
    assert [name for name in settings.get("equivalent", {}) if " => " not in name] == []


def test_results_are_those_of_listed_modules():
    lines = [json.loads(line) for line in (FOLDER / "results.jsonl").read_text().splitlines()]
    assert {line["module"] for line in lines} <= set(MODULES)
    assert all(line["noticed"] + len(line["survived"]) == line["run"] for line in lines)


def test_every_module_of_operations_is_listed():
    ops = {f"tunix/ops/{path.name}" for path in (source.ROOT / "tunix" / "ops").glob("[a-z]*.py")}
    assert ops - set(MODULES) == set()
