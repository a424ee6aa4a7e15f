"""Makes prompts and completions of translation pairs.

Two layouts are common: one column of texts by language (OPUS-100: ``{"translation": {"en": ...,
"fr": ...}}``), and a column for each side (MTNT: ``src`` and ``dst``).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from tunix.data import sources
from tunix.utils import config

_COLUMN = "translation"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranslationConfig(config.Config):
    """Which side of a pair is given, and how the model is asked for the other."""

    source: str
    """Language to translate from, or the column that holds its texts."""

    target: str
    """Language to translate to, or the column that holds its texts."""

    prefix: str = ""
    """Text before the source, such as ``Translate this into French:`` and a line break."""

    suffix: str = ""
    """Text between the source and the translation, such as a line break."""

    as_chat: bool = False
    """Whether the pair becomes a question and a reply for the chat template."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        if self.source == self.target:
            yield f"source and target are both {self.source!r}; nothing would be translated"


def as_row(row: sources.Row, settings: TranslationConfig) -> sources.Row | str:
    """Return the pair as a prompt with its completion, or the sentence about what is missing."""
    values, column = row.values, ""
    if _COLUMN in values:
        values, column = values[_COLUMN], f" column {_COLUMN!r}:"
        if not isinstance(values, Mapping):
            return (
                f"{row.where}: column {_COLUMN!r} must hold texts by language, found "
                f"{type(values).__name__}"
            )
    texts: dict[str, str] = {}
    for name in (settings.source, settings.target):
        text = values.get(name)
        if not isinstance(text, str) or not text.strip():
            found = repr(text) if name in values else f"only {sorted(map(str, values))}"
            hint = "" if name in values else config.did_you_mean(name, map(str, values))
            return f"{row.where}:{column} expected text in {name!r}{hint}, found {found}"
        texts[name] = text
    columns = _columns(texts[settings.source], texts[settings.target], settings)
    return sources.Row(columns, row.where)


def _columns(source: str, target: str, settings: TranslationConfig) -> dict[str, Any]:
    prompt = settings.prefix + source + settings.suffix
    if not settings.as_chat:
        return {"prompt": prompt, "completion": target}
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": target}],
    }
