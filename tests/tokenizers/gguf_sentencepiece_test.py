"""The tokenizer of a GGUF file equals the SentencePiece model that was stored in it."""

import io
import os

import gguf
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from tests.tokenizers import tiny_tokenizer
from tunix.tokenizers import gguf_tokenizer, tokenizer_backends, tokenizer_loader

TEXTS = st.text(alphabet="abtheqz 019.,'!\n\t\u00e9e\u0301\u4e2d\U0001f600<b>/\u2581", max_size=30)
SAMPLES = [
    "the quick  brown\tfox\n\njumps 12345 times, doesn't   it?\n\n\n",
    "caf\u00e9 cafe\u0301 \u4e2d\u6587 \U0001f600\u200d\u2764\ufe0f      \r\n",
    " <b>bold</b> \n\n",
    "",
]
DEFINED = ["\n", "\n\n", "\u2581\u2581", "\u2581\u2581\u2581", "<b>", "</b>"]
CORPUS = [
    "the quick brown fox jumps over the lazy dog, doesn't it?",
    "a model of the language that the others speak at the table",
    "0123456789 times the number that we have had before",
]


def trained():
    """Return a byte-pair model of SentencePiece with Gemma's settings."""
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 3),
        model_writer=stream,
        model_type="bpe",
        vocab_size=360,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        user_defined_symbols=DEFINED,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=stream.getvalue())


def metadata_of(processor, **extra):
    """Write a model down as the converter of llama.cpp does."""
    ids = range(processor.get_piece_size())
    kinds = []
    for i in ids:
        kind = gguf.TokenType.NORMAL
        if processor.is_unknown(i):
            kind = gguf.TokenType.UNKNOWN
        elif processor.is_control(i):
            kind = gguf.TokenType.CONTROL
        elif processor.is_byte(i):
            kind = gguf.TokenType.BYTE
        elif processor.id_to_piece(i) in DEFINED:
            kind = gguf.TokenType.USER_DEFINED
        kinds.append(kind)
    pieces = [processor.id_to_piece(i) for i in ids]
    defined = gguf.TokenType.USER_DEFINED
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [
            piece.replace("\u2581", " ") if kind == defined else piece
            for piece, kind in zip(pieces, kinds, strict=True)
        ],
        "tokenizer.ggml.scores": [processor.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [int(kind) for kind in kinds],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_space_prefix": False,
        **{f"tokenizer.ggml.{key}": value for key, value in extra.items()},
    }


ORIGINAL = trained()
OURS = gguf_tokenizer.from_metadata(metadata_of(ORIGINAL), "x.gguf")


@given(text=TEXTS)
def test_ids_and_text_equal_those_of_sentencepiece(text):
    ids = ORIGINAL.encode(text)
    assert OURS.encode(text, add_special_tokens=False).ids == ids
    assert OURS.decode(ids, False) == ORIGINAL.decode(ids) == text.replace("\u2581", " ")


@pytest.mark.parametrize("text", SAMPLES)
def test_ids_equal_those_of_sentencepiece_on_prose(text):
    ids = ORIGINAL.encode(text)
    assert OURS.encode(text, add_special_tokens=False).ids == ids
    assert OURS.decode(ids) == text


def test_pieces_that_the_user_defined_are_cut_out_first():
    tokens = OURS.encode("<b>the    the</b>\n\n\n", add_special_tokens=False).tokens
    assert tokens[0] == "<b>"
    assert tokens[-3:] == ["</b>", "\n\n", "\n"]
    assert "\u2581\u2581\u2581" in tokens


def test_characters_outside_the_vocabulary_become_bytes():
    tokens = OURS.encode("\u00e9", add_special_tokens=False).tokens
    assert tokens == ["<0xC3>", "<0xA9>"]


def test_a_beginning_is_added_unless_the_header_says_otherwise():
    assert OURS.encode("a").tokens == ["<s>", "a"]
    metadata = metadata_of(ORIGINAL, add_bos_token=False, add_eos_token=True)
    assert gguf_tokenizer.from_metadata(metadata, "x").encode("a").tokens == ["a", "</s>"]


def test_control_tokens_are_special_and_others_are_not():
    special = {t.content for t in OURS.get_added_tokens_decoder().values() if t.special}
    assert special == {"<pad>", "</s>", "<s>", "<unk>"}
    ids = tokenizer_backends.wrap(OURS).encode_ordinary("<s>")
    assert 2 not in ids
    assert OURS.decode(ids) == "<s>"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"add_space_prefix": True}, r"add_space_prefix is true"),
        ({"remove_extra_whitespaces": True}, r"remove_extra_whitespaces is true"),
    ],
)
def test_what_would_change_the_text_is_refused(extra, message):
    with pytest.raises(tokenizer_backends.TokenizerError, match=message):
        gguf_tokenizer.from_metadata(metadata_of(ORIGINAL, **extra), "x.gguf")


def test_a_file_without_scores_says_so():
    metadata = metadata_of(ORIGINAL)
    del metadata["tokenizer.ggml.scores"]
    with pytest.raises(tokenizer_backends.TokenizerError, match=r"lacks .*scores"):
        gguf_tokenizer.from_metadata(metadata, "x.gguf")


REAL = "TUNIX_GEMMA3_270M_GGUF"
PROSE = [
    *SAMPLES,
    *CORPUS,
    tiny_tokenizer.GEMMA,
    "\u4e2d\u6587 \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    " " * 40 + "x" + "\n" * 40,
    "def f(x):\n    return {'a': [x ** 2 for _ in range(10)]}  # \u03c0\n",
    "<bos>hi<eos><start_of_turn>user\n<table><tr>a</tr> [multimodal] <unused5>",
]


@pytest.mark.slow
@pytest.mark.skipif(
    REAL not in os.environ or "TUNIX_GEMMA3_270M" not in os.environ,
    reason=f"{REAL} and TUNIX_GEMMA3_270M are not both set: a GGUF file and a Hugging Face "
    "directory of gemma-3-270m",
)
def test_the_published_gemma_vocabulary_gives_the_ids_of_its_tokenizer_json():
    ours = tokenizer_loader.load(os.environ[REAL]).tokenizer
    theirs = tokenizer_loader.load(os.environ["TUNIX_GEMMA3_270M"]).tokenizer
    for text in PROSE:
        ids = ours.encode(text).ids
        assert ids == theirs.encode(text).ids
        assert ours.decode(ids, False) == theirs.decode(ids, False)
