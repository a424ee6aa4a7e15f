import html.parser
import json
import re

import pytest

from tunix.cli import main, report_main
from tunix.cli.report import report_charts, report_prompts
from tunix.utils import json_lines

NASTY = '<script>alert("x")</script> & <img src=http://192.0.2.1/x>'


def write_run(path, *, steps=3):
    path.mkdir()
    json_lines.append(
        path / "metrics.jsonl",
        [
            {
                "step": step,
                "train/reward": 0.1 * step,
                "train/reward/right": 0.1 * step,
                "train/reward/short": 1.0,
                "train/kl": "nan",
                "train/other": 5.0,
                **({"eval/reward": 0.3} if step == 2 else {}),
            }
            for step in range(1, steps + 1)
        ],
    )
    json_lines.append(
        path / "completions.jsonl",
        [
            {
                "step": step,
                "prompt": f"question {i // 2}",
                "columns": {"answer": f"<{i // 2}>"},
                "completion": NASTY if i == 3 else f"reply {step}.{i}",
                "rewards": {"right": float(i % 2), "short": None if i == 0 else 0.5},
                "reward": float(i % 2),
                "advantage": 0.5 if i % 2 else -0.5,
                "log_ratio": 0.01 * i,
                "finish_reason": "stop",
                "num_tokens": 4,
                "policy_version": step - 1,
            }
            for step in range(1, steps + 1)
            for i in range(4)
        ],
    )
    json_lines.append(
        path / "alarms.jsonl", [{"step": 2, "alarm": "truncated", "message": "60% are cut off"}]
    )
    (path / "summary.json").write_text('{"reward_after": 0.75, "steps": 3, "none": null}')
    (path / "config.yaml").write_text("task: <things>\n")
    return path


class Reader(html.parser.HTMLParser):
    """Reads a page strictly: every element closed in turn, the cells of every table kept."""

    VOID = ("meta", "br", "input", "line", "polyline", "circle")

    def __init__(self, page):
        super().__init__()
        self.open, self.tables, self.tags = [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def test_what_was_measured_on_held_out_data_is_a_table(tmp_path):
    run = write_run(tmp_path / "run")
    summary = {
        "steps": 3,
        "eval_before": {"loss": 4.5, "generation/exact": 0.25, "gone": 1.0},
        "eval_after": {"loss": 2.25, "generation/exact": 0.5, "<new>": float("nan")},
        "eval_of_average": {"loss": 2.125},
        "best_step": 2,
    }
    (run / "summary.json").write_text(json.dumps(summary))
    page = report_main.make_page(run, max_rows=10)
    assert Reader(page).tables[0] == [
        ["", "before", "after", "of the average"],
        ["loss", "4.5", "2.25", "2.125"],
        ["generation/exact", "0.25", "0.5", "–"],
        ["gone", "1", "–", "–"],
        ["<new>", "–", "nan", "–"],
    ]


def test_a_run_without_held_out_data_has_no_such_table(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "summary.json").write_text(
        json.dumps({"steps": 3, "eval_before": None, "eval_after": None})
    )
    assert "Held-out data" not in report_main.make_page(run, max_rows=10)


def test_the_page_shows_curves_completions_and_alarms(run, capsys):
    assert main.main(["report", str(run)]) == 0
    assert str(run / "report.html") in capsys.readouterr().out.replace("\n", "")
    page = (run / "report.html").read_text(encoding="utf-8")
    reader = Reader(page)
    best, worst, completions, prompts = reader.tables
    head = completions[0]
    assert head[:6] == ["step", "prompt", "completion", "reward", "advantage", "log_ratio"]
    assert head[6:] == [
        "reward/right", "reward/short", "num_tokens", "finish_reason", "policy_version",
        "column/answer",
    ]  # fmt: skip
    assert [row[-1] for row in completions[1:5]] == ["<1>", "<1>", "<0>", "<0>"]
    assert len(completions) == 1 + 12 and completions[1][:2] == ["3", "question 1"]
    assert [row[head.index("reward/short")] for row in completions[1:5]][-1] == "–"
    assert [row[head.index("advantage")] for row in best[1:]] == ["0.5", "0.5"]
    assert [row[head.index("advantage")] for row in worst[1:]] == ["-0.5", "-0.5"]
    assert [row[0] for row in prompts[1:]] == ["question 0", "question 1"]
    titles = [attrs["aria-label"] for tag, attrs in reader.tags if tag == "svg"]
    assert titles[:1] == ["Reward"] and "Reward functions" in titles and "train/other" in titles
    assert "KL to the reference" not in titles  # not one finite value
    for expected in ("60% are cut off", "step 2: truncated", "0.75", "task: &lt;things&gt;"):
        assert expected in page


def test_the_page_needs_no_network_and_runs_nothing_of_a_completion(run):
    page = report_main.make_page(run, max_rows=100)
    reader = Reader(page)
    assert [tag for tag, _ in reader.tags].count("script") == 1
    assert not [attrs for _, attrs in reader.tags if {"src", "href"} & set(attrs)]
    assert not re.search(r"url\(|@import", page)
    assert any(NASTY in cell for row in reader.tables[2] for cell in row)


def test_a_long_table_says_what_it_leaves_out(run):
    page = report_main.make_page(run, max_rows=5)
    assert "5 of 12, the latest first" in page
    assert len(Reader(page).tables[2]) == 1 + 5


def test_a_run_without_completions_has_curves(tmp_path):
    run = tmp_path / "sft"
    run.mkdir()
    json_lines.append(run / "metrics.jsonl", [{"step": 1, "train/loss": 2.0}])
    reader = Reader(report_main.make_page(run, max_rows=5))
    assert not reader.tables
    assert [attrs["class"] for tag, attrs in reader.tags if tag == "circle"] == ["c0"]
    assert [tag for tag, _ in reader.tags].count("svg") == 1


def test_lines_that_all_prompts_share_are_shown_once(run):
    rows = json_lines.read(run / "completions.jsonl")
    (run / "completions.jsonl").unlink()
    template = "<s>system\nBe brief.</s>\nuser\n{}\n<s>assistant\n"
    json_lines.append(
        run / "completions.jsonl",
        [{**row, "prompt": template.format(row["prompt"])} for row in rows],
    )
    page = report_main.make_page(run, max_rows=100)
    prompts = Reader(page).tables[3]
    assert [row[0] for row in prompts[1:]] == ["question 0", "question 1"]
    assert page.count("Be brief.") == 1
    assert "user\n…\n&lt;s&gt;assistant" in page


def test_shared_lines_are_whole_and_do_not_overlap():
    assert report_prompts.shared_lines(["a\nb 1\nc", "a\nb 2\nc"]) == ("a\n", "\nc")
    assert report_prompts.shared_lines(["a\nb\n", "a\n\n"]) == ("a\n", "\n")
    assert report_prompts.shared_lines(["a\n", "a\na\n"]) == ("a\n", "")
    assert report_prompts.shared_lines(["77 or 98", "77 or 89"]) == ("", "")
    assert report_prompts.shared_lines(["a\nb\n", "a\nb\n"]) == ("", "")


def test_a_directory_that_is_no_run_is_refused(tmp_path, capsys):
    assert main.main(["report", str(tmp_path)]) == 2
    assert "no metrics.jsonl" in capsys.readouterr().err.replace("\n", " ")


def test_a_run_before_its_first_step_is_told_from_what_is_no_run(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("task: x\n")
    assert main.main(["report", str(tmp_path)]) == 2
    assert "no step of this run has been logged yet" in capsys.readouterr().err


def test_a_run_without_a_summary_is_called_unfinished(run):
    assert "Not finished" not in report_main.make_page(run, max_rows=10)
    (run / "summary.json").unlink()
    assert "<p>Not finished" in report_main.make_page(run, max_rows=10)


def test_a_critic_has_charts_of_its_own(run):
    json_lines.append(
        run / "metrics.jsonl",
        [{"step": 4, "train/critic/value_error": 0.5, "train/critic/value_mean": 0.1}],
    )
    reader = Reader(report_main.make_page(run, max_rows=10))
    titles = [attrs["aria-label"] for tag, attrs in reader.tags if tag == "svg"]
    assert {"Critic: squared error of values", "Critic: values and returns"} <= set(titles)


def test_ticks_are_round_numbers_inside():
    assert report_charts.ticks(0.0, 1.0) == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])
    assert report_charts.ticks(-3.0, 17.0) == pytest.approx([0.0, 5.0, 10.0, 15.0])
    assert report_charts.ticks(1e-6, 3e-6) == pytest.approx([1e-6, 1.5e-6, 2e-6, 2.5e-6, 3e-6])


def test_a_line_goes_through_its_points_and_breaks_where_there_are_none():
    series = {"a": ([0, 1, 2, 3], [0.0, 1.0, float("nan"), 0.5])}
    chart = report_charts.line_chart("t", series)
    first, second = re.findall(
        r'<polyline class="c0" fill="none" stroke="#2563b8" points="([^"]*)"', chart
    )
    (x0, y0), (x1, y1) = [tuple(map(float, p.split(","))) for p in first.split()]
    assert x0 == 60.0 and y0 > y1 and x1 == pytest.approx(60 + 390 / 3, abs=0.1)
    assert second.startswith("450.0,")


@pytest.mark.parametrize(
    "left_out",
    [["advantage"], ["rewards"], ["columns", "log_ratio"], ["num_tokens"], ["policy_version"],
     ["advantage", "rewards", "columns", "log_ratio", "num_tokens", "finish_reason"]],
)  # fmt: skip
@pytest.mark.parametrize("value", [None, "missing"], ids=["null", "missing"])
def test_completions_that_say_less_are_shown_with_what_they_say(tmp_path, left_out, value):
    """Those of other programs and of earlier versions."""
    run = write_run(tmp_path / "run")
    rows = json_lines.read(run / "completions.jsonl")
    (run / "completions.jsonl").unlink()
    for row in rows:
        for name in left_out:
            row[name] = value
            if value == "missing":
                del row[name]
    json_lines.append(run / "completions.jsonl", rows)
    page = report_main.make_page(run, max_rows=100)
    table = Reader(page).tables
    heads = {name for rows in table for name in rows[0]}
    assert heads.isdisjoint(left_out)
    assert "reply 3.2" in page
    assert ("What was taught" in page) == ("advantage" not in left_out)


@pytest.mark.parametrize(
    ("file", "text", "named"),
    [
        ("metrics.jsonl", '{"step": 1}\noops\n{"step": 3}\n', "line 2: not a JSON line"),
        ("metrics.jsonl", '{"step": 1, "train/x": "abc"}\n', "step 1: train/x is 'abc'"),
        ("metrics.jsonl", '{"step": 1, "train/x": null}\n', "step 1: train/x is None"),
        ("metrics.jsonl", '{"step": 1, "train/x": [1]}\n', "step 1: train/x is [1]"),
        ("completions.jsonl", '{"step": 1}\n', "line 1: 'prompt' must be text, there is none"),
        (
            "completions.jsonl",
            '{"step": 1, "prompt": "a", "completion": "b", "reward": "c"}\n',
            "line 1: 'reward' must be a number, found 'c'",
        ),
        ("alarms.jsonl", '{"step": 1, "alarm": 5}\n', "line 1: 'alarm' must be text, found 5"),
        ("summary.json", "{", "not readable as JSON"),
        ("summary.json", "[1]", "expected an object, found list"),
    ],
)
def test_a_file_that_is_damaged_is_named_in_one_message(tmp_path, capsys, file, text, named):
    run = write_run(tmp_path / "run")
    (run / file).write_text(text)
    assert main.main(["report", str(run)]) == 2
    error = capsys.readouterr().err
    assert file in error and named in error and "elete" in error
    assert "Traceback" not in error
