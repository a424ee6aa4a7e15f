"""Greedy replies of a model that is being trained: what a trainer's evaluation samples."""

import dataclasses
from collections.abc import Sequence

import jax
from flax import nnx

from tunix.generate import engine, sampling_params, weight_sync
from tunix.models.transformer import decoder
from tunix.tokenizers import model_tokenizer, tokenizer_adapter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """What a model says to a prompt."""

    text: str
    """Without the token that ended it, and other special ones."""
    num_tokens: int
    is_cut: bool
    """Whether it had not ended after the most tokens allowed."""


class GreedyReplies:
    """Returns the most likely reply, token by token, to each of many prompts.

    The engine and its compiled programs are kept between calls; its copy of the weights and its
    cache are not, so that training has the memory. Nothing is drawn, and the model is only read.

    Args:
        tokenizer: Decodes replies, and says which tokens end them.
        max_new_tokens: Tokens after which a reply is cut.
        max_slots: How many replies are decoded at a time.
    """

    def __init__(
        self,
        tokenizer: tokenizer_adapter.TokenizerAdapter,
        *,
        max_new_tokens: int,
        max_slots: int = 16,
    ):
        self._tokenizer, self._max_slots = tokenizer, max_slots
        self._params = sampling_params.SamplingParams(
            max_new_tokens=max_new_tokens, temperature=0.0, stop_token_ids=tokenizer.eos_ids()
        )
        self._engine: engine.Engine | None = None

    def __call__(self, model: nnx.Module, prompts: Sequence[Sequence[int]]) -> list[Reply]:
        """Return a reply for each prompt, with the weights that ``model`` has now.

        Args:
            model: A :class:`~tunix.models.transformer.decoder.Decoder`, the same at every call.
            prompts: Token ids.

        Raises:
            TypeError: If the model is no decoder of this library.
            PromptError: Listing every prompt that is empty, or that there is none.
        """
        if not isinstance(model, decoder.Decoder):
            raise TypeError(f"replies come from a tunix Decoder, got a {type(model).__name__}")
        sampler = self._loaded(model, max(map(len, prompts), default=1))
        try:
            found = sampler.generate(
                prompts,
                self._params,
                key=jax.random.key(0),
                forbidden_tokens=model_tokenizer.unused_ids(self._tokenizer, model.num_embed),
            )
        finally:
            sampler.hold(weight_sync.SamplerWeights(state=nnx.State({}), head=None))
        replies = []
        for one in found:
            is_cut = one.finish_reason == "length"
            spoken = one.token_ids if is_cut else one.token_ids[:-1]
            text = self._tokenizer.decode(spoken.tolist(), skip_special_tokens=True)
            replies.append(Reply(text=text, num_tokens=len(one.token_ids), is_cut=is_cut))
        return replies

    def _loaded(self, model: decoder.Decoder, longest: int) -> engine.Engine:
        """Return an engine with the model's weights and room for the longest prompt."""
        needed = longest + self._params.max_new_tokens
        if self._engine is None or self._engine.cache_size < needed:
            self._engine = engine.Engine(model, max_slots=self._max_slots, cache_size=needed)
        else:
            self._engine.sync(model)
        return self._engine
