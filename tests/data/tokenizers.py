"""The tokenizer that the tests of this room share."""

from tests.tokenizers import tiny_tokenizer
from tunix.tokenizers import tokenizer_adapter

EOS, IM_END, BOS = 0, 2, 3


def make(template=tiny_tokenizer.CHATML, *, bos=None):
    """Return a ChatML tokenizer whose padding shares the id of its EOS."""
    return tokenizer_adapter.TokenizerAdapter(
        tiny_tokenizer.make(bos=bos),
        special_ids=tokenizer_adapter.SpecialIds(bos=BOS, eos=EOS, pad=EOS),
        chat_template=template,
    )
