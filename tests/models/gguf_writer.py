"""Writes GGUF files as llama.cpp's converter does, for tests."""

import gguf
import numpy as np

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
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


def permute(w, num_heads):
    return w.reshape(num_heads, 2, -1, w.shape[-1]).swapaxes(1, 2).reshape(w.shape)


def round_weights(hf, quantization):
    """Give ``hf`` the weights that survive storage with ``quantization``."""
    import torch  # what else is here serves without it

    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim == 2:
                stored = gguf.quantize(parameter.numpy(), quantization)
                parameter.copy_(torch.tensor(gguf.dequantize(stored, quantization)))


def write(
    path,
    hf,
    quantization=gguf.GGMLQuantizationType.F32,
    architecture="llama",
    extra=lambda writer: None,
    without=(),
):
    """Write ``hf`` to ``path``; ``extra`` may add metadata and tensors, ``without`` drops some."""
    config = hf.config
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "é", "b"])
    writer.add_array("tokenizer.ggml.scores", [0.0, -1.5, 2.0])
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in hf.state_dict().items():
        if gguf_name(name) in without or (config.tie_word_embeddings and name == "lm_head.weight"):
            continue
        w = tensor.numpy()
        for part, count in heads.items():
            w = permute(w, count) if part in name else w
        if w.ndim == 2:
            stored = gguf.quantize(w, quantization)
            writer.add_tensor(gguf_name(name), stored, raw_dtype=quantization)
        else:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(w))
    extra(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
