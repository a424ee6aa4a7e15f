"""A GGUF file and the Hugging Face model it was made of compute the same logits."""

import gguf
import numpy as np
import pytest

from tests.models import gguf_writer, hf_llama
from tunix.models import automodel, gguf_loader, weight_table
from tunix.models.hf import hf_config
from tunix.ops import rope
from tunix.utils import config as config_lib

F32 = gguf.GGMLQuantizationType.F32
# Sizes that blocks of 32 divide, as quantisation needs.
BLOCKS = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 64}


def load(path):
    return automodel.AutoModel.from_pretrained(str(path), precision="exact")[0]


@pytest.mark.parametrize(
    ("quantization", "changes"),
    [
        pytest.param("F32", {}, id="float32, grouped-query heads"),
        pytest.param("F32", {"tie_word_embeddings": True}, id="float32, tied"),
        pytest.param("F32", {"head_dim": 12}, id="float32, head width is not width / heads"),
        pytest.param("F32", {"rope_theta": 5e5, "rms_norm_eps": 1e-6}, id="float32, other numbers"),
        pytest.param("F16", {}, id="float16"),
        pytest.param("BF16", {}, id="bfloat16"),
        pytest.param("Q8_0", {}, id="8 bits"),
        pytest.param("Q4_1", {"tie_word_embeddings": True}, id="4 bits, tied"),
    ],
)
def test_logits_match_transformers_on_the_stored_weights(quantization, changes, tmp_path):
    kind = gguf.GGMLQuantizationType[quantization]
    hf = hf_llama.make(**BLOCKS | changes)
    gguf_writer.round_weights(hf, kind)
    gguf_writer.write(tmp_path / "tiny.gguf", hf, kind)
    assert hf_llama.logits_error(load(tmp_path / "tiny.gguf"), hf) < 1e-5


def test_weights_are_bitwise_those_of_the_hugging_face_directory(tmp_path):
    hf = hf_llama.make()
    gguf_writer.write(tmp_path / "tiny.gguf", hf)
    checkpoint = gguf_loader.GGUFCheckpoint(tmp_path / "tiny.gguf")
    expected = {name: tensor.numpy() for name, tensor in hf.state_dict().items()}
    assert checkpoint.shapes == {name: array.shape for name, array in expected.items()}
    for name, array in expected.items():
        np.testing.assert_array_equal(checkpoint.read(name), array)
    assert checkpoint.config["rms_norm_eps"] == 1e-5  # not its float32 neighbour


def factors(scaling, head_dim=8, theta=5e5):
    plain = rope.rope_frequencies(head_dim, theta)
    return plain / rope.rope_frequencies(head_dim, theta, scaling)


LLAMA_31 = rope.RopeScaling(kind="llama3", factor=8.0)


def test_the_scaling_of_llama_3_1_is_recognised_from_its_factors(tmp_path):
    scaling = {"factor": 8.0, "original_max_position_embeddings": 8192}
    hf = hf_llama.make(
        rope_theta=5e5,
        rope_scaling=hf_llama.LLAMA3_SCALING | scaling,
        max_position_embeddings=65_536,
    )

    def extra(writer):
        writer.add_tensor("rope_freqs.weight", factors(LLAMA_31))

    gguf_writer.write(tmp_path / "tiny.gguf", hf, extra=extra)
    assert load(tmp_path / "tiny.gguf").config.rope_scaling == LLAMA_31
    assert hf_llama.logits_error(load(tmp_path / "tiny.gguf"), hf) < 1e-5


def test_linear_scaling_is_read(tmp_path):
    hf = hf_llama.make(rope_scaling={"rope_type": "linear", "factor": 3.0})

    def extra(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(3.0)

    gguf_writer.write(tmp_path / "tiny.gguf", hf, extra=extra)
    assert hf_llama.logits_error(load(tmp_path / "tiny.gguf"), hf) < 1e-5


def other_factors(writer):
    scaling = rope.RopeScaling(kind="llama3", factor=8.0, original_max_position=160)
    writer.add_tensor("rope_freqs.weight", factors(scaling))


def yarn(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (other_factors, "rope_freqs.weight is not the rotary scaling of Llama 3.1"),
        (yarn, "llama.rope.scaling.type is 'yarn'"),
        (lambda writer: writer.add_expert_count(8), "llama.expert_count is 8"),
        (lambda writer: writer.add_value_length(4), "llama.attention.value_length is 4"),
    ],
    ids=["factors", "yarn", "experts", "value width"],
)
def test_a_model_that_computes_something_else_is_refused(extra, message, tmp_path):
    path = tmp_path / "tiny.gguf"
    gguf_writer.write(path, hf_llama.make(), extra=extra)
    with pytest.raises(config_lib.ConfigError) as error:
        load(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_another_architecture_is_refused_by_name(tmp_path):
    gguf_writer.write(tmp_path / "tiny.gguf", hf_llama.make(), architecture="lama")
    with pytest.raises(config_lib.ConfigError, match=r"architecture is 'lama'.*mean 'llama'"):
        load(tmp_path / "tiny.gguf")


def test_tensors_that_are_missing_or_unknown_are_listed_together(tmp_path):
    def extra(writer):
        writer.add_tensor("blk.0.attn_q.bias", np.zeros(32, np.float32))
        writer.add_tensor("strange", np.zeros(3, np.float32))

    path = tmp_path / "tiny.gguf"
    gguf_writer.write(path, hf_llama.make(), extra=extra, without=["blk.1.ffn_up.weight"])
    with pytest.raises(weight_table.WeightsError) as error:
        load(path)
    assert set(error.value.problems) == {
        "no parameter for checkpoint tensor model.layers.0.self_attn.q_proj.bias (32,)",
        "no parameter for checkpoint tensor strange (3,)",
        "no checkpoint tensor model.layers.1.mlp.up_proj.weight (56, 32)",
    }


def test_a_file_without_an_embedding_is_refused(tmp_path):
    path = tmp_path / "tiny.gguf"
    gguf_writer.write(path, hf_llama.make(), without=["token_embd.weight"])
    with pytest.raises(config_lib.ConfigError, match=r"token_embd\.weight is missing"):
        load(path)


def test_missing_and_malformed_metadata_come_together(tmp_path):
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_embedding_length(32)
    writer.add_head_count([4, 2])
    writer.add_tensor("token_embd.weight", np.zeros((67, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(config_lib.ConfigError) as error:
        load(path)
    assert set(error.value.problems) == {
        "metadata llama.attention.head_count must be a positive number, got [4, 2]",
        "metadata llama.block_count is missing",
        "metadata llama.feed_forward_length is missing",
        "metadata llama.attention.layer_norm_rms_epsilon is missing",
    }


def test_unpermuting_undoes_the_converter():
    w = np.arange(24.0).reshape(12, 2)
    for heads in (1, 2, 3):
        np.testing.assert_array_equal(
            gguf_loader.unpermute(gguf_writer.permute(w, heads), heads), w
        )
    # One head of width 4: rows 0, 1 of the first half are interleaved with 2, 3.
    np.testing.assert_array_equal(gguf_loader.unpermute(w[:4], 1)[:, 0], [0.0, 4.0, 2.0, 6.0])


def test_metadata_becomes_the_config_of_the_same_model(tmp_path):
    hf = hf_llama.make()
    gguf_writer.write(tmp_path / "tiny.gguf", hf)
    hf.config.save_pretrained(tmp_path)
    theirs = hf_config.config_from_hf(hf_config.read_config(tmp_path / "config.json"))
    ours = hf_config.config_from_hf(gguf_loader.GGUFCheckpoint(tmp_path / "tiny.gguf").config)
    assert ours == theirs


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.block_count", 2**31, "block_count must be a whole number of at most 10,000"),
        ("llama.block_count", 2**32 - 1, "block_count must be a whole number of at most 10,000"),
        ("llama.block_count", 9_999, "9999 layers, and the checkpoint has 30 tensors in all"),
        ("llama.block_count", 2.5, "block_count must be a whole number"),
        ("llama.block_count", True, "block_count must be a positive number, got True"),
        ("llama.block_count", "3", "block_count must be a positive number, got '3'"),
        ("llama.embedding_length", float("inf"), "embedding_length must be a positive number"),
        ("llama.attention.head_count", float("nan"), "head_count must be a positive number"),
        ("llama.attention.head_count", 2**31, "num_attention_heads must be a positive integer"),
        ("llama.attention.key_length", 0, "key_length must be a positive number, got 0"),
        ("llama.rope.freq_base", -1.0, "freq_base must be a positive number, got -1.0"),
    ],
)
def test_a_size_that_no_model_has_is_refused_at_once(key, value, message, tmp_path):
    path = tmp_path / "tiny.gguf"
    kind = gguf.GGUFValueType.FLOAT64 if isinstance(value, float) else None
    if type(value) is int:
        kind = gguf.GGUFValueType.UINT32

    def replace(writer):
        writer.kv_data[0].pop(key, None)
        writer.add_key_value(key, value, kind or gguf.GGUFValueType.get_type(value))

    gguf_writer.write(path, hf_llama.make(), extra=replace)
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1000


def test_an_embedding_that_is_no_matrix_is_refused(tmp_path):
    path = tmp_path / "tiny.gguf"

    def flat(writer):
        writer.add_tensor("token_embd.weight", np.zeros(64, np.float32))

    gguf_writer.write(path, hf_llama.make(), extra=flat, without=["token_embd.weight"])
    with pytest.raises(config_lib.ConfigError, match=r"token_embd\.weight has shape \(64,\)"):
        load(path)


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    path, hf = tmp_path / "tiny.gguf", hf_llama.make()
    hf.model.norm.weight.data[3] = float("nan")
    gguf_writer.write(path, hf)
    with pytest.raises(weight_table.WeightsError, match=r"model\.norm\.weight holds NaN"):
        load(path)
