"""Every command refuses texts with tokens for which the model has no embedding."""

import json
import shutil

import pytest
import safetensors.numpy
import tokenizers
import yaml

from tests import tiny_llama
from tunix.cli import errors, main
from tunix.models.hf import hf_config

LETTERS = 256


def write_model(folder, *special, rows):
    """Write a model of ``rows`` embeddings, and a tokenizer of bytes with tokens behind them."""
    tiny_llama.write_model(folder)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    raw = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[])
    )
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    raw.add_special_tokens(list(special))
    raw.save(str(folder / "tokenizer.json"))
    safetensors.numpy.save_file(tiny_llama.tensors(rows), folder / "model.safetensors")
    config = hf_config.read_config(folder / "config.json") | {"vocab_size": rows}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink()
    return str(folder)


def message(role, content):
    return {"role": role, "content": content}


CHAT = [message("user", "a"), message("assistant", "b")]
ROWS = {
    "sft": [{"messages": CHAT}] * 2,
    "dpo": [{"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": [message("assistant", "c")]}] * 2,
    "kto": [
        {"prompt": [message("user", q)], "completion": CHAT[1:], "label": q == "d"} for q in "de"
    ],
    "rl": [{"prompt": CHAT[:1]}] * 2,
}
ROWS["text"] = [{"text": "a<|im_start|>b"}] * 2
ROWS["answers"] = [{"prompt": "a", "completion": "b<|im_start|>"}] * 2
GOOD = [{"prompt": "a", "completion": "b"}] * 2

RL = {
    "num_train_epochs": 1,
    "reward_functions": ["rewards.py"],
    "rollout_config": {"total_generation_steps": 4, "max_prompt_length": 64},
}
STREAM = {"data_config": {"streaming_window": 2}, "training_config": {"max_steps": 1}}
CASES = [
    pytest.param("sft", "sft", {}, id="sft: conversations"),
    pytest.param("sft", "text", {}, id="sft: text"),
    pytest.param("sft", "answers", {}, id="sft: prompts with answers"),
    pytest.param("sft", "sft", STREAM, id="sft: streamed"),
    pytest.param("dpo", "dpo", {}, id="dpo"),
    pytest.param("dpo", "dpo", {"cpo_config": {}}, id="cpo"),
    pytest.param("dpo", "kto", {"kto_config": {}}, id="kto"),
    pytest.param("reward", "dpo", {}, id="reward"),
    pytest.param("grpo", "rl", {"grpo_config": {"num_generations": 2}, **RL}, id="grpo"),
    pytest.param("ppo", "rl", {"ppo_config": {"num_generations": 2}, **RL}, id="ppo"),
]


def run(folder, model, command, rows, settings, **more):
    folder.joinpath("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder.joinpath("rewards.py").write_text("def r(prompts, completions): return [0.0, 1.0]\n")
    given = {
        "model_config": {"model_id": model, "precision": "exact"},
        "data_path": str(folder / "data.jsonl"),
        "batch_size": 2,
        "run_dir": str(folder / "run"),
        **settings,
        **more,
    }
    if "reward_functions" in given:
        given["reward_functions"] = [str(folder / "rewards.py")]
    (folder / "job.yaml").write_text(yaml.safe_dump(given))
    return main.main([command, str(folder / "job.yaml")])


@pytest.fixture(scope="module")
def without_start(tmp_path_factory):
    """Return a model that has no embedding for the token that begins a message."""
    folder = tmp_path_factory.mktemp("without_start")
    return write_model(folder, "<|im_end|>", "<|im_start|>", rows=LETTERS + 1)


@pytest.mark.parametrize(("command", "rows", "settings"), CASES)
def test_training_is_refused(command, rows, settings, without_start, tmp_path, capsys):
    assert run(tmp_path, without_start, command, ROWS[rows], settings) == errors.USAGE_ERROR
    shown = capsys.readouterr().err
    assert "'<|im_start|>' as token ids [257], and the model has embeddings of 0 to 256" in shown
    assert "line 1" in shown or "data.jsonl" in shown
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("command", ["sft", "grpo"])
def test_evaluation_is_refused(command, without_start, tmp_path, capsys):
    (tmp_path / "eval.jsonl").write_text(json.dumps(ROWS["sft" if command == "sft" else "rl"][0]))
    held_out = str(tmp_path / "eval.jsonl")
    if command == "sft":
        code = run(tmp_path, without_start, "sft", GOOD, {}, eval_data_path=held_out)
    else:
        settings = {"grpo_config": {"num_generations": 2}, **RL, "eval_data_path": held_out}
        code = run(tmp_path, without_start, "grpo", [{"prompt": "a"}] * 2, settings)
    assert code == errors.USAGE_ERROR
    shown = capsys.readouterr().err
    assert "eval.jsonl" in shown
    assert "'<|im_start|>' as token ids [257]" in shown


def test_generation_is_refused(without_start, capsys):
    assert main.main(["generate", without_start, "--prompt", "a"]) == errors.USAGE_ERROR
    assert "'<|im_start|>' as token ids [257]" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["sft", "dpo", "reward", "grpo"])
def test_a_model_whose_texts_cannot_end_is_refused(command, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    model = write_model(tmp_path / "model", "<|im_start|>", "<|im_end|>", rows=LETTERS + 1)
    rows = {"sft": "sft", "grpo": "rl"}.get(command, "dpo")
    settings = {"grpo_config": {"num_generations": 2}, **RL} if command == "grpo" else {}
    assert run(tmp_path, model, command, ROWS[rows], settings) == errors.USAGE_ERROR
    assert "'<|im_end|>' as token ids [257]" in capsys.readouterr().err


def test_a_token_that_no_text_has_needs_no_embedding(without_start, tmp_path, capsys):
    settings = {"training_config": {"max_steps": 1}}
    assert run(tmp_path, without_start, "sft", GOOD, settings) == 0


def test_rows_of_the_embedding_that_are_no_token_are_not_written(tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    model = write_model(folder, "<|im_end|>", "<|im_start|>", rows=LETTERS + 44)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][LETTERS + 2 :] *= 100  # tied: the most likely ones
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    line = ["generate", model, "--prompt", "a", "--max-new-tokens", "12", "--json"]
    assert main.main([*line, "--temperature", "1", "--num-samples", "4"]) == 0
    found = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert len(found) == 4
    assert max(max(row["token_ids"]) for row in found) < LETTERS + 2
    # Of the policy over all rows, of which most is lost, and of what was drawn from.
    assert max(row["logps"][0] for row in found) < min(row["sampled_logps"][0] for row in found)
    shutil.rmtree(folder)
