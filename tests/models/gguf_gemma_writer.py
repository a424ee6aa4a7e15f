"""Writes GGUF files of Gemma 3 as llama.cpp's converter does, for tests."""

import gguf
import numpy as np
import torch

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    module = name.removesuffix(".weight")
    if module in _NAMES:
        return _NAMES[module] + ".weight"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{_NAMES[part]}.weight"


def round_norms(hf):
    """Give ``hf`` the norms that survive the addition of one."""
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_((parameter + 1.0) - 1.0)


def write(path, hf, quantization):
    config = hf.config
    full = config.rope_parameters["full_attention"]
    writer = gguf.GGUFWriter(str(path), "gemma3")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_freq_base(full["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if full["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(full["factor"])
    for name, tensor in hf.state_dict().items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        w = tensor.numpy()
        if name.endswith("norm.weight"):
            writer.add_tensor(gguf_name(name), w + np.float32(1.0))
        else:
            stored = gguf.quantize(w, quantization)
            writer.add_tensor(gguf_name(name), stored, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
