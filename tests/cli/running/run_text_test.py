"""What a run made of its rows is kept, and whatever is done with its model goes by it."""

import datetime
import json
import shutil
import types

import pytest
import transformers
import yaml

from tunix.cli import dpo_main, errors, export_main, generate_main, sft_main
from tunix.cli.running import run_text
from tunix.data import sft_config, sft_data
from tunix.data.preference import preference_config, preference_data
from tunix.tokenizers import tokenizer_adapter
from tunix.utils import config

TURN = "<|im_start|>user\na?<|im_end|>\n<|im_start|>assistant\nb.<|im_end|>"
CHAT = {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}]}
PLAIN = {"prompt": "a?", "completion": "b."}
DATED = "{{ strftime_now('%d %b %Y') }}\n"


@pytest.fixture
def train(tmp_path, tiny_model):
    """Return a function that trains for a step and returns the run's directory."""
    base = shutil.copytree(tiny_model, tmp_path / "base")

    def train(command, rows, *overrides, name="run"):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = {
            "model_config": {"model_id": str(base), "precision": "exact"},
            "data_path": str(tmp_path / "rows.jsonl"),
            "batch_size": 2,
            "optimizer_config": {"learning_rate": 0.01},
            "training_config": {"max_steps": 1},
        }
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(settings))
        line = ["tunix", str(tmp_path / "base.yaml"), f"run_dir={tmp_path / name}", *overrides]
        assert errors.run(command.main, line) == 0
        return tmp_path / name

    return train


class SpyError(Exception):
    """Ends a command before it samples."""


def prompt_lengths(monkeypatch, run, *options):
    def spy(self, prompts, *args, **settings):
        raise SpyError(list(map(len, prompts)))

    monkeypatch.setattr(generate_main.engine.Engine, "warmup", lambda self: None)
    monkeypatch.setattr(generate_main.engine.Engine, "generate", spy)
    with pytest.raises(SpyError) as caught:
        generate_main.main(["tunix generate", str(run), "--prompt", "a?", *options])
    return caught.value.args[0]


def test_a_run_on_text_is_asked_and_exported_without_the_template(
    train, tmp_path, capsys, monkeypatch
):
    run = train(sft_main, [PLAIN] * 2)
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 2 rows are text and go to the model as they stand, without its chat" in said
    assert "tunix generate and tunix export follow the run; to use that, give lists of" in said
    assert prompt_lengths(monkeypatch, run) == [2]
    assert "trained on text without the chat template" in capsys.readouterr().err
    assert prompt_lengths(monkeypatch, run, "--chat")[0] > 2
    line = ["tunix export", str(run), str(tmp_path / "out"), "--format", "hf"]
    assert export_main.main(line) == 0
    assert "without the base model's chat template" in " ".join(capsys.readouterr().out.split())
    assert "on text without a chat template" in (tmp_path / "out" / "README.md").read_text()
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template is None
    assert prompt_lengths(monkeypatch, tmp_path / "out") == [2], "as the run"


def test_a_run_on_conversations_is_asked_with_the_template(train, capsys, monkeypatch):
    run = train(sft_main, [CHAT, CHAT])
    assert "chat template" not in capsys.readouterr().out
    assert run_text.read(run) == run_text.RunText()
    assert prompt_lengths(monkeypatch, run)[0] > 2
    assert prompt_lengths(monkeypatch, run, "--raw") == [2]


def test_preferences_of_text_are_told_of_and_kept(train, capsys):
    pair = {"prompt": "a?", "chosen": "b.", "rejected": "c."}
    run = train(dpo_main, [pair, pair])
    assert "2 of 2 rows are text" in capsys.readouterr().out
    assert not run_text.read(run).uses_chat_template


@pytest.mark.parametrize(
    ("row", "plain"),
    [
        pytest.param(PLAIN, 1, id="a prompt and its completion"),
        pytest.param({"text": "a? b."}, 1, id="a text"),
        pytest.param(CHAT, 0, id="a conversation"),
        pytest.param({"text": TURN}, 0, id="a text to which the template has been applied"),
        pytest.param({"prompt": TURN[:-17], "completion": "b."}, 0, id="such a prompt"),
        pytest.param({"prompt": "a?", "chosen": "b", "rejected": "c"}, 1, id="a pair of texts"),
        pytest.param({"prompt": TURN[:-17], "chosen": "b", "rejected": "c"}, 0, id="such a pair"),
        pytest.param({"prompt": CHAT["messages"][:1], "chosen": CHAT["messages"][1:],
                      "rejected": [{"role": "assistant", "content": "c"}]}, 0, id="talks"),
    ],
)  # fmt: skip
def test_rows_that_lack_the_template_are_counted(tiny_model, row, plain):
    tokenizer = tokenizer_adapter.load_tokenizer(tiny_model)
    if "chosen" in row:
        settings = preference_config.PreferenceDataConfig()
        account = preference_data.read_pairs([row], tokenizer, settings).report
    else:
        _, account = sft_data.load([row], tokenizer, sft_config.SftDataConfig())
    assert (account.rows, account.plain_rows) == (1, plain)


def on(monkeypatch, day):
    class Date(datetime.date):
        @classmethod
        def today(cls):
            return datetime.date.fromisoformat(day)

    monkeypatch.setattr(run_text, "datetime", types.SimpleNamespace(date=Date))


def test_a_run_that_continues_on_another_day_keeps_its_date(train, tmp_path, capsys, monkeypatch):
    path = tmp_path / "base" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"chat_template": DATED + settings["chat_template"]}))
    on(monkeypatch, "2026-05-31")
    run = train(sft_main, [CHAT] * 4)
    said = " ".join(capsys.readouterr().out.split())
    assert "writes today's date into every conversation; for this run that is 2026-05-31" in said
    on(monkeypatch, "2026-06-01")
    train(sft_main, [CHAT] * 4, "training_config.max_steps=2")
    said = " ".join(capsys.readouterr().out.split())
    assert "for this run that is 2026-05-31" in said
    assert "finished after step 2" in said
    options = generate_main._parser("tunix generate").parse_args([str(run)])
    _, tokenizer, _ = generate_main.load(options)
    assert str(tokenizer.apply_chat_template(CHAT["messages"])).startswith("31 May 2026\n")
    other = train(sft_main, [CHAT] * 4, "tokenizer_config.date=2024-07-26", name="other")
    assert run_text.read(other).date == datetime.date(2024, 7, 26)


@pytest.mark.parametrize("text", ["", "5", "{}", '{"date": 3, "uses_chat_template": true}'])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / run_text.FILE).write_text(text)
    with pytest.raises(config.ConfigError, match=r"text\.json.*\n.*remove the file"):
        run_text.read(tmp_path)
