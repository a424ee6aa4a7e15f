import dataclasses

from tests.rl import helpers
from tunix.rl.monitoring import completions_log
from tunix.utils import json_lines


def test_a_resumed_run_writes_later_completions_again(tmp_path):
    path = tmp_path / "completions.jsonl"
    log = completions_log.CompletionsLog(path)
    groups = helpers.make_groups([[1.0, -1.0]])
    log.append(groups, step=1)
    log.append(groups, step=2)
    log.truncate_after(1)
    rows = json_lines.read(path)
    assert [row["step"] for row in rows] == [1, 1]
    assert [row["advantage"] for row in rows] == [1.0, -1.0]


def test_what_the_data_says_of_a_prompt_stands_beside_its_completions(tmp_path):
    columns = {"answer": "7", "level": 3, "share": 0.5, "image": object(), "odd": float("nan")}
    groups = [dataclasses.replace(g, columns=columns) for g in helpers.make_groups([[1.0, 0.0]])]
    path = tmp_path / "completions.jsonl"
    completions_log.CompletionsLog(path).append(groups, step=1)
    rows = json_lines.read(path)
    assert [row["columns"] for row in rows] == [{"answer": "7", "level": 3, "share": 0.5}] * 2


def test_without_a_file_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = completions_log.CompletionsLog(None)
    log.append(helpers.make_groups([[1.0]]), step=1)
    log.truncate_after(0)
    assert not list(tmp_path.iterdir())
