"""The directory of a run."""

import json

import pytest

from tunix.sft import run_directory
from tunix.utils import json_lines


def test_everything_has_its_place(tmp_path):
    run = run_directory.RunDirectory(tmp_path / "a" / "run")
    names = ["config", "metrics", "tensorboard", "completions", "checkpoints", "nonfinite"]
    assert [getattr(run, name).name for name in [*names, "summary"]] == [
        "config.yaml", "metrics.jsonl", "tensorboard", "completions.jsonl", "checkpoints",
        "nonfinite", "summary.json",
    ]  # fmt: skip
    assert list(run.path.iterdir()) == []


def test_what_is_written_can_be_read(tmp_path):
    run = run_directory.RunDirectory(tmp_path)
    run.write_config("model: x\n")
    run.write_summary({"reward_after": 0.9})
    rows = [{"step": 1, "completion": "zwei\u2028Zeilen\n"}, {"step": 2, "completion": "53"}]
    run.append_completions(rows[:1])
    run.append_completions(rows[1:])
    assert run.config.read_text() == "model: x\n"
    assert json.loads(run.summary.read_text()) == {"reward_after": 0.9}
    assert json_lines.read(run.completions) == rows


def test_completions_after_the_restored_step_are_set_aside(tmp_path):
    run = run_directory.RunDirectory(tmp_path)
    run.append_completions({"step": step, "i": i} for step in (1, 2, 3) for i in (0, 1))
    run.truncate_after(2)
    assert [row["step"] for row in json_lines.read(run.completions)] == [1, 1, 2, 2]


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(run_directory.RunDirectoryError) as error:
        run_directory.RunDirectory(blocker / "run")
    assert f"cannot write to the run directory {blocker}/run: Not a directory" in str(error.value)
    assert "choose another" in str(error.value)


def test_a_file_in_its_place_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(run_directory.RunDirectoryError, match="run is a file; choose another one"):
        run_directory.RunDirectory(tmp_path / "run")


def test_the_users_home_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_directory.RunDirectory("~/runs/a").path == tmp_path / "runs" / "a"
