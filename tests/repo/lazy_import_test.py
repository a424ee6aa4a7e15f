"""Importing is cheap and does nothing."""

import json
import subprocess
import sys

import pytest

import tunix
from tests.repo import dependencies_test, source


def run_python(code: str) -> str:
    """Run ``code`` in a fresh interpreter and return what it prints."""
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=source.ROOT
    ).stdout


def test_import_tunix_loads_no_third_party_module():
    code = (
        "import sys; before = set(sys.modules)\n"
        "import tunix, json\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(json.dumps(sorted(new - set(sys.stdlib_module_names))))"
    )
    assert json.loads(run_python(code)) == ["tunix"]


def test_the_help_of_the_command_loads_neither_jax_nor_numpy():
    code = (
        "import sys\n"
        "from tunix.cli import main\n"
        "try:\n    main.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print('loaded:', sorted({'jax', 'numpy', 'flax', 'rich'} & set(sys.modules)))"
    )
    assert run_python(code).endswith("loaded: []\n")


def test_no_module_has_side_effects_on_jax():
    """Import every module; a backend that started, or a changed setting, is a side effect."""
    modules = [source.module_name(path) for path in source.python_files("tunix")]
    code = (
        "import importlib, jax\n"
        "from jax._src import xla_bridge\n"
        "import flax.nnx, optax, orbax.checkpoint\n"
        "before = dict(jax.config.values)\n"
        f"for name in {modules}:\n    importlib.import_module(name)\n"
        "print(xla_bridge.backends_are_initialized())\n"
        "print([k for k, v in jax.config.values.items() if before.get(k, v) != v])"
    )
    assert run_python(code).split("\n")[:2] == ["False", "[]"]


def test_every_module_can_be_imported_without_any_extra():
    """Import every module where what the extras bring cannot be imported."""
    modules = {source.module_name(path) for path in source.python_files("tunix")}
    modules -= {"tunix.sft.metrics.tensorboard_file"}  # the backend imports it when it first writes
    code = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({sorted(dependencies_test.modules_of_extras())}))\n"
        f"for name in {sorted(modules)}:\n    importlib.import_module(name)\n"
        "print('imported')"
    )
    assert run_python(code) == "imported\n"


@pytest.mark.parametrize("name", [name for name in tunix.__all__ if name != "__version__"])
def test_every_public_name_resolves(name):
    assert getattr(tunix, name) is not None
    assert name in dir(tunix)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'tunix' has no attribute 'PEFTTrainer'"):
        _ = tunix.PEFTTrainer


def test_the_table_and_the_imports_for_type_checkers_agree():
    tree = source.tree_of(source.ROOT / "tunix" / "__init__.py")
    names = {name for name, _ in source.imported_modules(tree) if name.startswith("tunix.")}
    names -= {"tunix.version.__version__", "tunix.utils.reference_names"}
    assert names == {f"{module}.{name}" for name, module in tunix._MODULE_OF_NAME.items()}
    assert sorted(tunix._MODULE_OF_NAME) == sorted(set(tunix.__all__) - {"__version__"})
