import pytest

from tunix.cli import config
from tunix.utils import config as config_lib


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base.yaml"
    path.write_text("seed: 1\nrate: 1e-5\nblock: {a: 1, b: {c: 2, d: 3}}\nitems: [1, 2]\n")
    return str(path)


def load(*arguments, environ=(), keys=()):
    return config.load(arguments, dict(environ), keys).values


def test_overriding_one_nested_key_keeps_its_neighbours(base):
    assert load(base, "block.b.c=9")["block"] == {"a": 1, "b": {"c": 9, "d": 3}}


def test_numbers_in_scientific_notation_are_numbers(base):
    assert load(base, "block.a=3e-4") | {"rate": 1e-5} == load(base, "block.a=3e-4")
    assert load(base, "block.a=3e-4")["block"]["a"] == 3e-4


def test_lists_are_replaced(base):
    assert load(base, "items=[7]")["items"] == [7]


def test_later_sources_win(base, tmp_path):
    override = tmp_path / "override.yaml"
    override.write_text("seed: 2\nrate: 2\nitems: 2\n")
    environ = {"T_RATE": "3", "T_ITEMS": "3", "T_UNRELATED": "3"}
    arguments = (base, f"override_config_file={override}", "items=4")
    values = load(*arguments, environ=environ.items(), keys=["seed", "rate", "items"])
    assert (values["seed"], values["rate"], values["items"]) == (2, 3, 4)
    assert "unrelated" not in values


def test_the_source_names_every_file(base, tmp_path):
    override = tmp_path / "override.yaml"
    override.write_text("seed: 2\n")
    settings = config.load([base, f"override_config_file={override}"], {}, [])
    assert settings.source == f"{base}, {override}"


def test_interpolations_are_resolved(base):
    assert load(base, "block.a=${seed}")["block"]["a"] == 1


def test_the_shipped_base_config_is_meant_by_its_bare_name():
    assert load("base_config.yaml") == load(str(config.BASE_CONFIG))


def test_a_missing_file_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=rf"nothing.yaml does not exist \(looked in {tmp_path}"
    ):
        load(str(tmp_path / "nothing.yaml"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([], "the first argument must be a YAML file", id="nothing"),
        pytest.param(["seed=1"], "the first argument must be a YAML file", id="no file"),
        pytest.param(["BASE", "seed"], "'seed' is not of the form key=value", id="no value"),
        pytest.param(["BASE", "seed=[1"], r"seed=\[1: ", id="broken YAML"),
        pytest.param(["BASE", "seed=${nowhere}"], "nowhere", id="broken interpolation"),
    ],
)
def test_a_bad_command_line_is_one_config_error(base, arguments, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        load(*[base if a == "BASE" else a for a in arguments])


def test_broken_yaml_names_the_file_and_line(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("a: 1\nb: [1\n")
    with pytest.raises(config_lib.ConfigError, match=r"broken.yaml.*line 3"):
        load(str(path))


def test_a_file_that_is_a_list_is_refused(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- a\n")
    with pytest.raises(config_lib.ConfigError, match="keys and values"):
        load(str(path))
