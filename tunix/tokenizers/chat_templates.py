"""The chat templates of a tokenizer: usually one, sometimes several by name."""

import datetime
import functools
from collections.abc import Iterator, Mapping

from tunix.tokenizers import chat_encoding
from tunix.tokenizers import chat_template as chat_template_lib

# What transformers calls them.
_DEFAULT, _WITH_TOOLS = "default", "tool_use"


class ChatTemplates:
    """Templates by name, of which every conversation gets one; there may be none."""

    def __init__(
        self,
        source: str | Mapping[str, str] | None = None,
        *,
        special_tokens: Mapping[str, str] | None = None,
        where: str = "chat template",
        date: datetime.date | None = None,
    ):
        """Compile one template or several; the arguments are those of ``ChatTemplate``."""
        sources = {_DEFAULT: source} if isinstance(source, str) else source or {}
        self._templates = {
            name: chat_template_lib.ChatTemplate(
                text,
                special_tokens=special_tokens,
                where=where if name == _DEFAULT else f"{where} ({name!r})",
                date=date,
            )
            for name, text in sources.items()
        }

    def __bool__(self) -> bool:
        """Return whether there is a template."""
        return bool(self._templates)

    @property
    def reads_date(self) -> bool:
        """Whether a template writes today's date into conversations."""
        return any(template.reads_date for template in self._templates.values())

    @functools.cached_property
    def turn_opening(self) -> str | None:
        """What the default template writes right before the user's message, or after it."""
        template = self._templates.get(_DEFAULT)
        return None if template is None else chat_encoding.turn_opening(template)

    def turn_ends(self, known: Mapping[str, int]) -> Iterator[int]:
        """Yield the ids among ``known`` with which templates close a reply."""
        for template in self._templates.values():
            closing = chat_encoding.turn_end_token(template, known)
            if closing is not None:
                yield known[closing]

    def choose(self, *, with_tools: bool) -> chat_template_lib.ChatTemplate:
        """Return the template of a conversation.

        Raises:
            ChatTemplateError: If there is none for it.
        """
        for name in (_WITH_TOOLS, _DEFAULT) if with_tools else (_DEFAULT,):
            if name in self._templates:
                return self._templates[name]
        if self._templates:
            raise chat_template_lib.ChatTemplateError(
                f"this tokenizer has chat templates called {sorted(self._templates)}, and for this "
                f"conversation needs one called {_DEFAULT!r}; give one of them that name"
            )
        raise chat_template_lib.ChatTemplateError(
            "this tokenizer has no chat template, so messages cannot be rendered; use text "
            "prompts, an instruction-tuned model, or a tokenizer that has one "
            "(tokenizer_config.tokenizer_path of a run, chat_template of a TokenizerAdapter)"
        )
