"""Weights follow from who wrote a token; stops are trained, prompts are not."""

import numpy as np
import pytest

from tests.data import tokenizers
from tests.tokenizers import tiny_tokenizer
from tunix.data import formats, sources, tokenize


def show(example, tokenizer):
    """Return the trained tokens as text."""
    return tokenizer.decode(example.tokens[example.loss_weights > 0].tolist())


def test_text_is_trained_from_its_second_token_to_eos():
    tokenizer = tokenizers.make()
    example = tokenize.tokenize(formats.Text("the fox"), tokenizer)
    ids = tokenizer.encode("the fox")
    assert example.tokens.tolist() == [*ids, tokenizers.EOS]
    assert example.loss_weights.tolist() == [0.0] + [1.0] * len(ids)
    assert (example.tokens.dtype, example.loss_weights.dtype) == (np.int32, np.float32)
    assert example.trained_tokens == len(ids)


@pytest.mark.parametrize("text", ["the fox", "<bos>the fox"])
def test_bos_stands_once_and_is_not_trained(text):
    example = tokenize.tokenize(formats.Text(text), tokenizers.make(bos="<bos>"))
    assert example.tokens[0] == tokenizers.BOS
    assert tokenizers.BOS not in example.tokens[1:]
    assert example.loss_weights.tolist() == [0.0] + [1.0] * (len(example.tokens) - 1)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        pytest.param("the fox", tokenizers.EOS, id="EOS is added"),
        pytest.param("the fox<|endoftext|>", tokenizers.EOS, id="EOS is not added twice"),
        pytest.param("the fox<|im_end|>", tokenizers.IM_END, id="another stop token will do"),
    ],
)
def test_text_stops_once(text, end):
    example = tokenize.tokenize(formats.Text(text), tokenizers.make())
    stops = np.isin(example.tokens, [tokenizers.EOS, tokenizers.IM_END])
    assert (stops.sum(), example.tokens[-1]) == (1, end)


def test_only_the_completion_is_trained_and_its_eos_although_padding_shares_the_id():
    tokenizer = tokenizers.make(bos="<bos>")
    assert tokenizer.pad_id() == tokenizer.eos_id()
    example = tokenize.tokenize(formats.PromptCompletion("12 and 34?", " 46"), tokenizer)
    assert show(example, tokenizer) == " 46<|endoftext|>"
    assert tokenizer.decode(example.tokens) == "<bos>12 and 34? 46<|endoftext|>"


def test_a_prompt_is_tokenized_as_the_sampler_would():
    tokenizer = tokenizers.make(bos="<bos>")
    example = tokenize.tokenize(formats.PromptCompletion("a\n", "\n\nb"), tokenizer)
    prompt = tokenizer.encode_prompt("a\n")
    assert example.tokens[: len(prompt)].tolist() == prompt
    assert np.argmax(example.loss_weights > 0) == len(prompt)


@pytest.mark.parametrize("template", [tiny_tokenizer.CHATML, tiny_tokenizer.CHATML_MARKED])
def test_in_a_conversation_the_replies_and_their_ends_are_trained(template):
    tokenizer = tokenizers.make(template)
    messages = [
        {"role": "user", "content": "a <|im_end|>"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    example = tokenize.tokenize(formats.Conversation(messages), tokenizer)
    assert show(example, tokenizer) == "b<|im_end|>d<|im_end|>"
    last = tokenize.tokenize(formats.Conversation(messages, train_from=2), tokenizer)
    assert show(last, tokenizer) == "d<|im_end|>"
    assert (last.tokens == example.tokens).all()
    assert (example.tokens == tokenizers.IM_END).sum() == 4


def test_tools_reach_the_template():
    tokenizer = tokenizers.make(tiny_tokenizer.TOOLS)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    example = tokenize.tokenize(formats.Conversation(messages, [{"name": "add"}]), tokenizer)
    assert '"name": "add"' in tokenizer.decode(example.tokens)
    assert show(example, tokenizer) == "b<|im_end|>"


def four_turns(first, second):
    """Two questions with replies that have these further keys."""
    return [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"} | first,
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"} | second,
    ]


def tokenized(row, template=tiny_tokenizer.CHATML, **options):
    tokenizer = tokenizers.make(template)
    (example,) = formats.parse_rows(sources.read_rows([row]))
    return tokenize.tokenize(example, tokenizer, **options), tokenizer


@pytest.mark.parametrize("template", [tiny_tokenizer.CHATML, tiny_tokenizer.CHATML_MARKED])
def test_replies_weigh_what_their_messages_say(template):
    row = {"messages": four_turns({"weight": 0.5}, {})}
    example, tokenizer = tokenized(row, template)
    plain, _ = tokenized({"messages": four_turns({}, {})}, template)
    assert (example.tokens == plain.tokens).all()
    half = example.tokens[example.loss_weights == 0.5]
    assert tokenizer.decode(half.tolist()) == "b<|im_end|>"
    assert tokenizer.decode(example.tokens[example.loss_weights == 1].tolist()) == "d<|im_end|>"


@pytest.mark.parametrize("skip", [{"weight": 0}, {"train": False}])
def test_a_reply_of_weight_zero_is_context(skip):
    example, tokenizer = tokenized({"messages": four_turns(skip, {"train": True})})
    assert show(example, tokenizer) == "d<|im_end|>"


def test_a_template_may_rewrite_turns_that_are_not_trained():
    thought = {"content": "<think>x</think>b"}
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        tokenized({"messages": four_turns(thought, {})}, tiny_tokenizer.THINKING)
    row = {"messages": four_turns(thought | {"weight": 0}, {})}
    example, tokenizer = tokenized(row, tiny_tokenizer.THINKING)
    assert show(example, tokenizer) == "d<|im_end|>"
    assert "think" not in tokenizer.decode(example.tokens.tolist())


@pytest.mark.parametrize(
    "row",
    [{"prompt": "12 and", "completion": " 34"}, {"messages": four_turns({}, {"weight": 0.5})}],
    ids=["prompt and completion", "messages"],
)
def test_prompts_can_be_trained_too(row):
    replies, _ = tokenized(row)
    everything, _ = tokenized(row, train_on="everything")
    assert (replies.tokens == everything.tokens).all()
    expected = np.where(replies.loss_weights > 0, replies.loss_weights, 1.0)
    expected[0] = 0.0
    np.testing.assert_array_equal(everything.loss_weights, expected)


def test_the_end_of_an_example_can_be_kept_behind_its_bos():
    example = tokenize.TokenizedExample(np.arange(8, dtype=np.int32), np.ones(8, np.float32))
    cut = example.last(4, keep=1)
    assert cut.tokens.tolist() == [0, 5, 6, 7]
    assert cut.loss_weights.tolist() == [1, 0, 1, 1], "5 did not follow 0"
    assert example.last(3).tokens.tolist() == [5, 6, 7]
    assert example.last(3).loss_weights.tolist() == [0, 1, 1]
    assert example.loss_weights.sum() == 8, "the example itself is as it was"
