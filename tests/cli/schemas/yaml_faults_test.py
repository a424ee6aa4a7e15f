"""Settings that YAML reads as something else than was meant, or that are too large to be any."""

import time

import pytest

from tunix.cli import config, main
from tunix.cli.schemas import sft_schema, structure
from tunix.utils import config as config_lib


def problem_of_file(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(config_lib.ConfigError) as caught:
        config.load([str(path)], {}, [])
    assert caught.value.subject == str(path)
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize(
    ("lines", "where", "mended"),
    [
        pytest.param(["a: 1", "prefix: Translate: now"], "line 2, column 18: mapping values",
                     'prefix: "Translate: now"', id="a colon in a text"),
        pytest.param(["a: 1", "data_path: *.jsonl"], "line 2, column 13: ", 'data_path: "*.jsonl"',
                     id="a pattern that begins with a star"),
        pytest.param(["a: 1", "system_prompt: @me"], "line 2, column 16: ",
                     'system_prompt: "@me"', id="an at sign"),
        pytest.param(["a: 1", "suffix: %d"], "line 2, column 9: ", 'suffix: "%d"',
                     id="a percent sign"),
    ],
)  # fmt: skip
def test_a_text_that_yaml_cannot_read_is_named_with_its_line_and_quoted(
    lines, where, mended, tmp_path
):
    problem = problem_of_file(tmp_path, "\n".join(lines))
    assert problem.startswith(f"run.yaml, {where}")
    assert problem.endswith(f"; if it is meant as text, quote it: {mended}")
    (tmp_path / "mended.yaml").write_text("\n".join([*lines[:-1], mended]))
    meant = lines[-1].partition(": ")[2]
    assert meant in config.load([str(tmp_path / "mended.yaml")], {}, []).values.values()


def test_what_cannot_be_read_on_the_command_line_is_quoted_there(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("a: 1\n")
    with pytest.raises(config_lib.ConfigError) as caught:
        config.load([str(path), "data_path=*.jsonl"], {}, [])
    (problem,) = caught.value.problems
    assert problem.endswith("""if it is meant as text, quote it twice: 'data_path="*.jsonl"'""")
    assert config.load([str(path), 'data_path="*.jsonl"'], {}, []).values["data_path"] == "*.jsonl"


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        pytest.param(False, 'YAML reads no, off and false as False: quote what is text, "no"',
                     id="no"),
        pytest.param(True, 'YAML reads yes, on and true as True: quote what is text, "yes"',
                     id="yes"),
        pytest.param(None, "YAML reads null, ~ and nothing at all as no value", id="nothing"),
        pytest.param({"Answer": "x"}, 'YAML reads key: text as a block of keys', id="a colon"),
        pytest.param(1.5, 'YAML reads it as a number: quote what is text, "1.5"', id="a number"),
    ],
)  # fmt: skip
def test_a_value_that_yaml_does_not_read_as_text_is_to_be_quoted(raw, hint):
    values = {"model_config": {"model_id": raw}, "data_path": "x"}
    with pytest.raises(config_lib.ConfigError) as caught:
        structure.structure(sft_schema.SftRun, values, notes={}, source="x")
    assert any(hint in problem for problem in caught.value.problems), caught.value.problems


def test_a_choice_and_a_list_of_texts_are_to_be_quoted_too():
    values = {
        "model_config": {"model_id": "x"},
        "data_path": ["a", False],
        "data_config": {"too_long": False},
    }
    with pytest.raises(config_lib.ConfigError) as caught:
        structure.structure(sft_schema.SftRun, values, notes={}, source="x")
    assert len(caught.value.problems) == 2
    assert all('quote what is text, "no"' in problem for problem in caught.value.problems)


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(LAUGHS, "more than 100,000 values, with what aliases (*NAME) stand for",
                     id="billions of values by alias"),
        pytest.param("a: &a [*a]\n", "*a is part of what it refers to", id="an alias of itself"),
        pytest.param("a: " + "[" * 100_000, "nests more than 50 deep", id="lists in lists"),
        pytest.param("a: " + "{b: " * 100_000, "nests more than 50 deep", id="blocks in blocks"),
        pytest.param("- a\n" * 200_000, "more than 100,000 values", id="a very long list"),
    ],
)  # fmt: skip
def test_settings_that_are_too_large_are_refused_before_they_are_built(text, expected, tmp_path):
    began = time.process_time()
    assert expected in problem_of_file(tmp_path, text)
    assert time.process_time() - began < 20.0


def test_a_file_that_is_no_settings_is_refused_unread(tmp_path, capsys):
    path = tmp_path / "model.yaml"
    with path.open("wb") as file:
        file.truncate(10_000_001)
    assert main.main(["sft", str(path)]) == 2
    assert "has 10,000,001 bytes, more than settings take" in capsys.readouterr().err


def test_a_value_of_the_command_line_is_bounded_too(tmp_path):
    (tmp_path / "run.yaml").write_text("b: 1\n")
    with pytest.raises(config_lib.ConfigError, match="a: line 1: nests more than 50 deep"):
        config.load([str(tmp_path / "run.yaml"), "a=" + "[" * 5000], {}, [])


def test_an_alias_of_usual_size_is_followed(tmp_path):
    (tmp_path / "run.yaml").write_text("a: &x {k: 1}\nb: *x\n")
    assert config.load([str(tmp_path / "run.yaml")], {}, []).values == {
        "a": {"k": 1},
        "b": {"k": 1},
    }
