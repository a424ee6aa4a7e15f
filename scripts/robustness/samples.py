"""Sound files of every kind that is read, tiny: what the attack damages."""

import json
import pathlib

import gguf
import numpy as np
import pyarrow as pa
import safetensors.numpy
import tokenizers
from pyarrow import parquet

from tests import tiny_llama
from tests.models import gguf_writer

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {i} and {i}?"},
            {"role": "assistant", "content": f"It is {2 * i}. é 日本"},
        ]
    }
    for i in range(6)
]
SETTINGS = """\
model_config:
  model_id: MODEL
  precision: exact
  lora_config: {rank: 2, alpha: 4.0, module_path: all-linear}
data_path: rows.jsonl
batch_size: 2
max_target_length: 64
num_train_epochs: 1
optimizer_config:
  opt_type: adamw
  learning_rate: 1.0e-3
  schedule_type: warmup_cosine_decay_schedule
  warmup_ratio: 0.1
  max_grad_norm: 1.0
training_config:
  eval_every_n_steps: 5
  max_steps: 4
loss_config:
  label_smoothing: 0.1
seed: 1
run_dir: runs/x
"""


def write(folder: pathlib.Path) -> None:
    """Write a model in one file, one in two files, a GGUF file, data and settings."""
    model = folder / "model"
    model.mkdir()
    tiny_llama.write_model(model)
    _write_in_two_files(model, folder / "sharded")
    _write_gguf(model, folder / "model.gguf")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    (folder / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    parquet.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet")
    settings = SETTINGS.replace("MODEL", str(model))
    (folder / "run.yaml").write_text(settings, encoding="utf-8")


def _write_in_two_files(model: pathlib.Path, folder: pathlib.Path) -> None:
    folder.mkdir()
    for path in model.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = safetensors.numpy.load_file(model / "model.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        safetensors.numpy.save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_gguf(model: pathlib.Path, path: pathlib.Path) -> None:
    config = json.loads((model / "config.json").read_text())
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    ids = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json")).get_vocab()
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "gpt-2")
    writer.add_array("tokenizer.ggml.tokens", [*sorted(ids, key=ids.__getitem__), "ab"])
    writer.add_array("tokenizer.ggml.token_type", [3, 3] + [1] * (len(ids) - 1))
    writer.add_array("tokenizer.ggml.merges", ["a b"])
    writer.add_eos_token_id(1)
    writer.add_string("tokenizer.chat_template", tiny_llama.TEMPLATE)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, value in safetensors.numpy.load_file(model / "model.safetensors").items():
        for part, count in heads.items():
            value = gguf_writer.permute(value, count) if part in name else value
        if "embed_tokens" in name:  # the format has no empty list of merges: one more token
            value = np.concatenate([value, value[:1]])
        writer.add_tensor(gguf_writer.gguf_name(name), np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
