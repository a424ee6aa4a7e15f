"""Every kind of tokenizer answers alike."""

import io

import numpy as np
import pytest
import transformers

from tests.tokenizers import tiny_tokenizer
from tunix.tokenizers import tokenizer_adapter

sentencepiece = pytest.importorskip("sentencepiece")
TEXT = "Hello there, the quick brown fox"


def make_hf():
    tokenizer = tiny_tokenizer.make(bos="<bos>")
    ids = {"bos": "<bos>", "eos": "<|im_end|>", "pad": "<|endoftext|>"}
    return tokenizer_adapter.TokenizerAdapter(
        tokenizer,
        special_ids=tokenizer_adapter.SpecialIds(
            **{role: tokenizer.token_to_id(t) for role, t in ids.items()}
        ),
        chat_template=tiny_tokenizer.CHATML,
    )


def make_transformers():
    return tokenizer_adapter.TokenizerAdapter(
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tiny_tokenizer.make(bos="<bos>"),
            bos_token="<bos>",
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
            chat_template=tiny_tokenizer.CHATML,
        )
    )


def train_sentencepiece(**options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tiny_tokenizer.CORPUS * 5),
        model_writer=model,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=3,
        **options,
    )
    return model.getvalue()


def make_sentencepiece(**options):
    return sentencepiece.SentencePieceProcessor(model_proto=train_sentencepiece(**options))


class Duck:
    """Letters as their code points."""

    def encode(self, text):
        return [ord(c) for c in text]

    def decode(self, ids):
        return "".join(map(chr, ids))

    def bos_id(self):
        return 1

    def eos_id(self):
        return 2

    def pad_id(self):
        return 0


@pytest.mark.parametrize("make", [make_hf, make_transformers])
def test_both_libraries_of_hugging_face_agree(make):
    ours, reference = make(), make_hf()
    raw = reference.tokenizer
    assert ours.tokenizer_type is tokenizer_adapter.TokenizerType.HF
    assert ours.encode(TEXT) == raw.encode(TEXT).ids
    assert ours.encode(TEXT)[0] == ours.bos_id() == raw.token_to_id("<bos>")
    assert ours.encode_text(TEXT) == raw.encode(TEXT).ids[1:]
    assert ours.prefix_ids() == [ours.bos_id()]
    assert (ours.eos_id(), ours.pad_id()) == (2, 0)
    assert ours.eos_ids() == (2,)
    messages = [{"role": "user", "content": "a<|im_end|>b"}]
    assert ours.encode_prompt(messages) == reference.encode_prompt(messages)
    assert ours.encode_ordinary("a<|im_end|>b") == reference.encode_ordinary("a<|im_end|>b")


@pytest.mark.parametrize("make", [make_hf, make_transformers])
def test_special_tokens_are_text_only_for_the_ordinary_encoding(make):
    ours = make()
    assert ours.encode_text("a<|im_end|>") == [*ours.encode_text("a"), ours.eos_id()]
    ordinary = ours.encode_ordinary("a<|im_end|>")
    assert ours.eos_id() not in ordinary
    assert ours.decode(ordinary) == "a<|im_end|>"
    assert ours.encode_text("a<|im_end|>")[-1] == ours.eos_id()  # the switch left no trace


@pytest.mark.parametrize("make", [make_hf, make_transformers])
def test_decoding_shows_special_tokens_unless_told_not_to(make):
    ours = make()
    ids = ours.encode_text("ab<|im_end|>")
    assert ours.decode(ids) == "ab<|im_end|>"
    assert ours.decode(ids, skip_special_tokens=True) == "ab"
    assert ours.decode(np.asarray(ids)) == "ab<|im_end|>"


def test_an_adapter_of_an_adapter_is_the_same():
    inner = make_hf()
    outer = tokenizer_adapter.TokenizerAdapter(inner)
    assert outer.tokenizer is inner.tokenizer
    assert (outer.bos_id(), outer.eos_ids()) == (inner.bos_id(), inner.eos_ids())
    messages = [{"role": "user", "content": "x"}]
    assert outer.apply_chat_template(messages) == inner.apply_chat_template(messages)


def test_sentencepiece_adds_nothing_by_itself_and_reads_no_control_symbol():
    processor = make_sentencepiece()
    ours = tokenizer_adapter.TokenizerAdapter(processor)
    assert ours.tokenizer_type is tokenizer_adapter.TokenizerType.SP
    assert ours.encode(TEXT) == processor.encode(TEXT)
    assert ours.decode(ours.encode(TEXT)) == TEXT
    assert (ours.bos_id(), ours.eos_id()) == (1, 2)
    assert ours.pad_id() == 2, "no padding id is declared, so EOS fills"
    assert ours.eos_id() not in ours.encode_ordinary("a</s>")
    assert ours.encode_prompt("a") == [1, *processor.encode("a")]
    assert ours.decode(np.asarray([*processor.encode("a"), 2])) == "a"


def test_a_template_prints_control_symbols_of_sentencepiece():
    ours = tokenizer_adapter.TokenizerAdapter(
        make_sentencepiece(), chat_template="{{ bos_token + messages[0].content + eos_token }}"
    )
    ids = ours.apply_chat_template([{"role": "user", "content": "hello</s>"}], tokenize=True)
    assert (ids[0], ids[-1]) == (1, 2)
    assert 2 not in ids[:-1]


def test_a_continuation_gets_no_leading_space_from_sentencepiece():
    ours = tokenizer_adapter.TokenizerAdapter(make_sentencepiece())
    start, rest = ours.encode_text("the qui"), ours.encode_text("ck fox", continues=True)
    assert ours.decode(start + rest) == "the quick fox"


def test_a_sentencepiece_model_without_bos_says_so():
    ours = tokenizer_adapter.TokenizerAdapter(make_sentencepiece(bos_id=-1))
    assert ours.bos_id() is None
    assert ours.prefix_ids() == []


def test_any_object_with_the_five_methods_will_do():
    ours = tokenizer_adapter.TokenizerAdapter(Duck())
    assert ours.tokenizer_type is tokenizer_adapter.TokenizerType.NONE
    assert ours.encode("ab") == ours.encode_prompt("ab") == [97, 98]
    assert ours.decode([97, 2], skip_special_tokens=True) == "a"
    assert (ours.bos_id(), ours.eos_ids(), ours.pad_id()) == (1, (2,), 0)


def test_other_objects_are_refused_by_name():
    with pytest.raises(tokenizer_adapter.TokenizerError, match=r"cannot use a builtins\.dict"):
        tokenizer_adapter.TokenizerAdapter({})


def test_a_bare_tokenizer_does_not_guess_its_eos():
    with pytest.raises(tokenizer_adapter.TokenizerError, match="load_tokenizer"):
        tokenizer_adapter.TokenizerAdapter(tiny_tokenizer.make()).eos_id()


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        pytest.param([], [], id="nothing stays nothing"),
        pytest.param([3, 3, 5], [3, 5], id="two become one"),
        pytest.param([3, 3, 3], [3], id="three become one"),
        pytest.param([5, 3, 3], [5, 3, 3], id="later ones stay"),
    ],
)
def test_leading_bos_is_kept_once(ids, expected):
    tokenizer = make_hf()
    assert tokenizer.bos_id() == 3
    assert tokenizer.dedup_bos_ids(ids) == expected


def test_a_prompt_that_spells_bos_has_one():
    tokenizer = make_hf()
    assert tokenizer.encode_prompt("<bos>a") == tokenizer.encode_prompt("a")


def test_tokenize_puts_prefix_suffix_and_ends_around_an_example(tmp_path):
    path = tmp_path / "tiny.model"
    path.write_bytes(train_sentencepiece())
    tokenizer = tokenizer_adapter.Tokenizer("sentencepiece", path)
    ids = tokenizer.tokenize("fox", prefix="the ", suffix=" jumps")
    assert ids.dtype == np.int32
    assert ids.tolist() == [1, *tokenizer.encode("the fox jumps"), 2]
    assert tokenizer.tokenize("fox", add_eos=False).tolist() == [1, *tokenizer.encode("fox")]
    bare = tokenizer_adapter.Tokenizer("sentencepiece", path, add_bos=False, add_eos=False)
    assert bare.tokenize("fox").tolist() == bare.encode("fox")
    with pytest.raises(tokenizer_adapter.TokenizerError, match="holds a sp tokenizer"):
        tokenizer_adapter.Tokenizer("huggingface", path)


def test_a_mistyped_type_gets_a_suggestion():
    with pytest.raises(tokenizer_adapter.TokenizerError, match="did you mean 'huggingface'"):
        tokenizer_adapter.Tokenizer("hugingface", "x")
