"""The tokenizer of a GGUF file is written as transformers reads it."""

import gguf
import pytest
import transformers

from tests import tiny_llama
from tests.models import hf_llama
from tests.tokenizers import gguf_tokenizer_test
from tunix.models import automodel
from tunix.models.hf import hf_export
from tunix.tokenizers import tokenizer_adapter, tokenizer_files

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
TEXTS = ["the quick  brown\tfox\n", "café 12345 <|im_end|> the", ""]


def write_gguf(path, tokenizer, templates=(), **extra):
    """Write a file of metadata without tensors."""
    writer = gguf.GGUFWriter(str(path), "llama")
    metadata = gguf_tokenizer_test.metadata_of(tokenizer, "smollm", **extra)
    for key, value in metadata.items():
        kinds = {list: writer.add_array, int: writer.add_uint32, str: writer.add_string}
        kinds[type(value)](key, value)
    writer.add_string("tokenizer.chat_template", TEMPLATE)
    if templates:
        writer.add_array("tokenizer.chat_templates", list(templates))
        for name, text in dict(templates).items():
            writer.add_string(f"tokenizer.chat_template.{name}", text)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_transformers_reads_what_is_written_of_a_gguf_file(tmp_path):
    tokenizer = gguf_tokenizer_test.smollm()
    end = tokenizer.token_to_id("<|im_end|>")
    source = write_gguf(tmp_path / "model.gguf", tokenizer, eos_token_id=end, padding_token_id=end)
    (tmp_path / "out").mkdir()
    tokenizer_files.write(source, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = tokenizer_adapter.load_tokenizer(str(source))
    for text in TEXTS:
        assert theirs(text).input_ids == ours.encode(text) == tokenizer.encode(text).ids
    assert (theirs.eos_token_id, theirs.pad_token_id) == (end, end)
    messages = [{"role": "user", "content": "the"}]
    assert theirs.apply_chat_template(messages, tokenize=False) == "<|im_start|>the<|im_end|>"
    again = tokenizer_adapter.load_tokenizer(str(tmp_path / "out"))
    assert again.eos_ids() == ours.eos_ids()
    assert again.encode_prompt(messages) == ours.encode_prompt(messages)


def test_files_of_a_directory_are_copied_also_by_the_name_of_one(tmp_path):
    for name in ("source", "a", "b"):
        (tmp_path / name).mkdir()
    tiny_llama.write_tokenizer(tmp_path / "source")
    tokenizer_files.write(tmp_path / "source", tmp_path / "a")
    tokenizer_files.write(tmp_path / "source" / "tokenizer.json", tmp_path / "b")
    for target in ("a", "b"):
        for path in (tmp_path / "source").iterdir():
            assert (tmp_path / target / path.name).read_bytes() == path.read_bytes()


def test_templates_by_name_come_along(tmp_path):
    for name in ("source", "a", "b"):
        (tmp_path / name).mkdir()
    tiny_llama.write_tokenizer(tmp_path / "source")
    folder = tmp_path / "source" / "additional_chat_templates"
    folder.mkdir()
    (folder / "tool_use.jinja").write_text("{{ tools }}" + TEMPLATE)
    (tmp_path / "source" / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer_files.write(tmp_path / "source", tmp_path / "a")
    tokenizer = gguf_tokenizer_test.smollm()
    source = write_gguf(
        tmp_path / "model.gguf",
        tokenizer,
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
        templates={"tool_use": "{{ tools }}" + TEMPLATE},
    )
    tokenizer_files.write(source, tmp_path / "b")
    messages = [{"role": "user", "content": "the"}]
    plain = "<|im_start|>the<|im_end|>"
    for place in (tmp_path / "source", tmp_path / "a", source, tmp_path / "b"):
        ours = tokenizer_adapter.load_tokenizer(place)
        assert ours.apply_chat_template(messages) == plain
        assert ours.apply_chat_template(messages, tools=[]) == "[]" + plain
    for name in ("a", "b"):
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        assert sorted(theirs.chat_template) == ["default", "tool_use"]
        assert theirs.apply_chat_template(messages, tools=[], tokenize=False) == "[]" + plain


@pytest.mark.real_model
@pytest.mark.slow
def test_a_model_out_of_a_gguf_file_is_saved_with_its_tokenizer(real_model_path, tmp_path):
    model, path = automodel.AutoModel.from_pretrained(real_model_path, precision="exact")
    with pytest.raises(hf_export.ExportError, match=r"tokenizer_files\.write"):
        hf_export.save_pretrained(model, tmp_path / "out", source=path)
    hf_export.save_pretrained(
        model,
        tmp_path / "out",
        source=path,
        write_tokenizer=tokenizer_files.write,
        max_shard_size="200MB",
    )
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values()), info
    assert hf_llama.logits_error(model, theirs.eval(), hf_llama.tokens(49_152)) < 1e-3
    assert theirs.generation_config.eos_token_id == 2
    assert theirs.config.max_position_embeddings == 8192
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = tokenizer_adapter.load_tokenizer(path)
    messages = [{"role": "user", "content": "What is 2 + 2?"}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert rendered["input_ids"] == ours.encode_prompt(messages)
