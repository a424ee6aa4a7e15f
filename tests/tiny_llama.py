"""A tiny Llama with a chat tokenizer on disk, in the Hugging Face layout, made without torch."""

import json
import pathlib

import numpy as np
import safetensors.numpy
import tokenizers

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WIDTH, MLP, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 16, 32, 2, 1, 8, 2


def write_tokenizer(folder) -> int:
    """Write a byte-level tokenizer and return the size of its vocabulary."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|im_start|>": 0, "<|im_end|>": 1} | {c: i + 2 for i, c in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(vocabulary)


def tensors(vocabulary: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(0, 0.05, shape).astype(np.float32)

    found = {
        "model.embed_tokens.weight": normal(vocabulary, WIDTH),
        "model.norm.weight": np.ones(WIDTH, np.float32),
    }
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        found |= {
            layer + "self_attn.q_proj.weight": normal(HEADS * HEAD_DIM, WIDTH),
            layer + "self_attn.k_proj.weight": normal(KV_HEADS * HEAD_DIM, WIDTH),
            layer + "self_attn.v_proj.weight": normal(KV_HEADS * HEAD_DIM, WIDTH),
            layer + "self_attn.o_proj.weight": normal(WIDTH, HEADS * HEAD_DIM),
            layer + "mlp.gate_proj.weight": normal(MLP, WIDTH),
            layer + "mlp.up_proj.weight": normal(MLP, WIDTH),
            layer + "mlp.down_proj.weight": normal(WIDTH, MLP),
            layer + "input_layernorm.weight": np.ones(WIDTH, np.float32),
            layer + "post_attention_layernorm.weight": np.ones(WIDTH, np.float32),
        }
    return found


def write_model(folder: pathlib.Path) -> None:
    """Write the model and its tokenizer into ``folder``."""
    vocabulary = write_tokenizer(folder)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "max_position_embeddings": 512,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    safetensors.numpy.save_file(tensors(vocabulary), folder / "model.safetensors")
