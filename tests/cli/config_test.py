import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from tunix.cli import command, config, errors
from tunix.cli.running import run_settings
from tunix.cli.schemas import sft_schema
from tunix.sft import run_directory
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


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(b"a: 1\nb: \xf6\n", "not UTF-8 at byte 9; save the file as UTF-8", id="latin"),
        pytest.param(b"\x80", "not UTF-8 at byte 1", id="a stray byte"),
        pytest.param(b"a: ${", "a", id="a reference that does not end"),
        pytest.param(b"a: ${b:", "a", id="a resolver that does not end"),
    ],
)
def test_a_file_that_is_no_settings_is_named(tmp_path, content, problem):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(config_lib.ConfigError, match=rf"broken.yaml(?s:.*){problem}"):
        load(str(path))


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


SECRET = "hunt'er2\\n"


def request(tmp_path, text, *arguments):
    path = tmp_path / "job.yaml"
    path.write_text("model_config: {model_id: m}\ndata_path: d\n" + text)
    return command.parse(["tunix sft", str(path), *arguments], sft_schema.SftRun, "")


@pytest.mark.parametrize(
    "reference",
    [
        pytest.param("${oc.env:SECRET}", id="the environment"),
        pytest.param("https://me:${oc.env:SECRET}@host/data", id="part of a text"),
        pytest.param("${eval_data_path}", id="another key that refers to it"),
        pytest.param("${oc.env:NOTHING,${oc.env:SECRET}}", id="a default"),
    ],
)
def test_a_secret_is_read_and_neither_printed_nor_saved(tmp_path, monkeypatch, reference):
    monkeypatch.setenv("SECRET", SECRET)
    other = "eval_data_path: ${oc.env:SECRET}\n"
    made = request(tmp_path, other, f"data_path={reference}")
    assert SECRET in made.run.data_path
    saved = yaml.safe_load(made.resolved_yaml)
    assert (saved["data_path"], saved["eval_data_path"]) == (reference, "${oc.env:SECRET}")
    assert SECRET not in made.resolved_yaml
    again = tmp_path / "saved.yaml"
    again.write_text(made.resolved_yaml)
    second = command.parse(["tunix sft", str(again)], sft_schema.SftRun, "")
    assert (second.run, second.resolved_yaml) == (made.run, made.resolved_yaml)


def test_secrets_in_lists_and_blocks_stay_references(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", SECRET)
    text = 'data_config: {columns: {text: "${oc.env:SECRET}"}}\n'
    made = request(tmp_path, text, "data_path=[a, '${oc.env:SECRET}']")
    assert made.run.data_path == ("a", SECRET)
    saved = yaml.safe_load(made.resolved_yaml)
    assert saved["data_path"] == ["a", "${oc.env:SECRET}"]
    assert saved["data_config"]["columns"] == {"text": "${oc.env:SECRET}"}


@pytest.mark.parametrize(
    "setting",
    [
        "optimizer_config.learning_rate=${oc.env:SECRET}",
        "data_config.format=${oc.env:SECRET}",
        "training_config=${oc.env:SECRET}",
        "optimizer_config.opt_type=ad-${oc.env:SECRET}",
    ],
)
def test_messages_say_the_reference_in_place_of_a_secret(tmp_path, monkeypatch, capsys, setting):
    monkeypatch.setenv("SECRET", SECRET)
    assert errors.run(lambda _: request(tmp_path, "", setting) and 0, []) == errors.USAGE_ERROR
    shown = capsys.readouterr().err
    assert "${oc.env:SECRET}" in shown
    assert "hunt" not in shown


def test_messages_after_the_settings_were_read_do_not_say_a_secret_either(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("SECRET", SECRET)

    def fail(_):
        run = request(tmp_path, "", "data_path=/data/${oc.env:SECRET}.jsonl").run
        raise FileNotFoundError(f"{run.data_path}: there is no such file")

    assert errors.run(fail, []) == errors.USAGE_ERROR
    assert "error: /data/${oc.env:SECRET}.jsonl: there is no" in capsys.readouterr().err


def test_a_changed_setting_is_told_without_the_secret(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SECRET", SECRET)
    directory = run_directory.RunDirectory(tmp_path / "run")
    directory.checkpoints.mkdir(parents=True)
    (directory.checkpoints / "1").mkdir()
    for setting in ("data_path=a", "data_path=${oc.env:SECRET}"):
        with run_settings.recorded(directory, request(tmp_path, "", setting).resolved_yaml):
            pass
    assert "changed    data_path: a -> ${oc.env:SECRET}" in capsys.readouterr().out


@given(text=st.text(alphabet="${}x:.a /'", max_size=12))
@example("a/${x}")
@example("${x")
@example("${oc.env:HOME}")
def test_a_text_that_looks_like_a_reference_is_written_with_an_escape_and_saved(
    tmp_path_factory, text
):
    folder = tmp_path_factory.mktemp("saved")
    made = request(folder, yaml.safe_dump({"run_dir": text.replace("${", r"\${")}))
    assert made.run.run_dir == text
    again = folder / "saved.yaml"
    again.write_text(made.resolved_yaml)
    second = command.parse(["tunix sft", str(again)], sft_schema.SftRun, "")
    assert second.run == made.run


def test_a_run_is_read_from_its_saved_settings_with_references_followed(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    path.write_text(
        "model_config: {model_id: '${oc.env:SECRET}', model_path: '\\${x}'}\n"
        "seed: 3\nother: {seed: '${seed}'}\nunset: '${oc.env:NOTHING}'\n"
    )
    monkeypatch.setenv("SECRET", SECRET)
    found = config.read_saved(path, "model_config", "other", "absent")
    assert found == {
        "model_config": {"model_id": SECRET, "model_path": "${x}"},
        "other": {"seed": 3},
        "absent": None,
    }
    with pytest.raises(config_lib.ConfigError, match="NOTHING"):
        config.read_saved(path, "unset")


@pytest.mark.parametrize("text", ["runs/${x}", "runs/${x", "${nope:1}"])
def test_a_reference_that_leads_nowhere_says_how_to_write_the_text(base, text):
    with pytest.raises(config_lib.ConfigError, match=r"where \$\{ is part of a text") as caught:
        load(base, f"block.b={text}")
    assert "block.b" in str(caught.value)
