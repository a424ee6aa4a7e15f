"""What a user meets who installed tunix without its extras."""

import importlib.util
import json
import struct
import sys

import pytest

from tests import tiny_llama
from tests.cli import grpo_main_test
from tunix.cli import errors, main, sft_main
from tunix.models import automodel
from tunix.sft import metrics_logger
from tunix.sft.metrics import plots


@pytest.fixture
def bare(monkeypatch):
    """Make the extras of every run of the command line impossible to import."""
    names = [name for name in sys.modules if name.partition(".")[0] in ("tensorboardX", "gguf")]
    names += [name for name in sys.modules if name.startswith("matplotlib")]
    for name in {*names, "tensorboardX", "gguf", "matplotlib"}:
        monkeypatch.setitem(sys.modules, name, None)
    # A module of ours that has already been imported would keep what it imported.
    monkeypatch.delitem(sys.modules, "tunix.sft.metrics.tensorboard_file", raising=False)
    assert importlib.util.find_spec("tensorboardX") is None


def header_of_gguf(folder):
    path = folder / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    return path


def test_supervised_tuning_needs_none_of_them(bare, tmp_path, tiny_model, caplog):
    rows = [{"prompt": f"{word}?", "completion": "yes"} for word in "abcd"]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = [
        f"model_config.model_id={tiny_model}",
        f"data_path={tmp_path / 'rows.jsonl'}",
        f"run_dir={tmp_path / 'run'}",
        "batch_size=2",
        "max_target_length=64",
        "training_config.max_steps=2",
    ]
    assert sft_main.main(["tunix sft", "base_config.yaml", *settings]) == 0
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) >= 2
    assert "pip install 'tunix[tensorboard]'" in caplog.text
    assert "metrics.jsonl has the same numbers" in caplog.text


def test_a_run_of_grpo_says_why_it_draws_no_picture(bare, tmp_path, tiny_model, capsys):
    base = grpo_main_test.write_job(
        tmp_path,
        tiny_model,
        batch_size=2,
        grpo_config={"num_generations": 2, "beta": 0.0},
        rl_training_config={"max_steps": 1},
    )
    directory = grpo_main_test.run(base)
    assert not (directory / "reward.png").exists()
    assert (directory / "summary.json").exists()
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("plot"))
    assert "not drawn" in line and "pip install 'tunix[plots]'" in line


def test_a_gguf_file_asks_for_its_reader(bare, tmp_path):
    path = header_of_gguf(tmp_path)
    with pytest.raises(ImportError, match=r"GGUF file needs .* pip install 'tunix\[gguf\]'"):
        automodel.AutoModel.from_pretrained(str(path))


def test_on_the_command_line_too_in_one_message(bare, tmp_path, capsys):
    path = header_of_gguf(tmp_path)
    line = ["generate", str(path), "--prompt", "hi"]
    assert main.main(line) == errors.USAGE_ERROR
    assert "pip install 'tunix[gguf]'" in capsys.readouterr().err


def test_a_backend_that_was_asked_for_by_name_is_not_left_out(bare, tmp_path):
    with pytest.raises(ImportError, match=r"pip install 'tunix\[tensorboard\]'"):
        metrics_logger.TensorboardBackend(tmp_path)


def test_a_picture_that_was_asked_for_is_not_left_out(bare, tmp_path):
    with pytest.raises(ImportError, match=r"pip install 'tunix\[plots\]'"):
        plots.save_curves(tmp_path / "a.png", {"a": ([1.0], [2.0])}, title="", ylabel="")


def test_a_directory_of_safetensors_loads_without_them(bare, tmp_path):
    tiny_llama.write_model(tmp_path)
    model, _ = automodel.AutoModel.from_pretrained(str(tmp_path))
    assert model.config.num_layers > 0
