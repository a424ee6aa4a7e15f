"""What the files beside a tokenizer say about it: ids with a role, and chat templates."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunix.tokenizers import tokenizer_backends
from tunix.utils import json_text, texts
from tunix.utils import problems as problems_lib

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
"""Templates by name, one file each."""

_TOKEN_FILES = ("tokenizer_config.json", "special_tokens_map.json")
_ID_FILES = ("generation_config.json", "config.json")
_AGAIN = "copy the file again from where the model is published"


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """What was found."""

    special_ids: tokenizer_backends.SpecialIds
    chat_template: str | Mapping[str, str] | None
    """One, or several by name."""


def read(
    directory: pathlib.Path,
    token_to_id: Callable[[str], int | None],
    own: tokenizer_backends.SpecialIds,
) -> TokenizerSettings:
    """Return what the files of a directory say.

    Args:
        directory: Of the tokenizer.
        token_to_id: Its vocabulary.
        own: Ids that the tokenizer itself declares.

    Raises:
        TokenizerError: Lists every file that cannot be read and every value of a wrong kind.
    """
    files = _Files(directory)
    ids = files.special_ids(token_to_id, own)
    template = files.chat_template()
    if files.problems:
        raise tokenizer_backends.TokenizerError(
            problems_lib.listed("the files of the tokenizer cannot be used", files.problems)
        )
    return TokenizerSettings(ids, template)


class _Files:
    """The files of a directory, and what is wrong with them."""

    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        self.problems: list[str] = []
        names = (*_TOKEN_FILES, *_ID_FILES, "chat_template.json")
        self._values = {name: self._object(directory / name) for name in names}

    def special_ids(
        self, token_to_id: Callable[[str], int | None], own: tokenizer_backends.SpecialIds
    ) -> tokenizer_backends.SpecialIds:
        """Gather roles: tokens named by the tokenizer's config, then ids of the model's configs."""

        def first(role: str, fallback: int | None, files: Sequence[str]) -> int | None:
            listed = [i for file in files for i in self._ids(file, f"{role}_token_id")]
            candidates = (self._named_id(f"{role}_token", token_to_id), fallback, *listed)
            return next((i for i in candidates if i is not None), None)

        # Qwen's model config names a BOS that its tokenizer does not have: the tokenizer is right.
        has_names = any(self._values[file] for file in _TOKEN_FILES)
        ends = [self._ids(file, "eos_token_id") for file in _ID_FILES]
        return tokenizer_backends.SpecialIds(
            bos=first("bos", own.bos, () if has_names else _ID_FILES),
            eos=first("eos", own.eos, _ID_FILES),
            pad=first("pad", own.pad, _ID_FILES),
            more_eos=tuple(ends[0] or ends[1]),
        )

    def chat_template(self) -> str | Mapping[str, str] | None:
        """Return the templates of the newest of the places they have lived in."""
        paths = {"default": self.directory / TEMPLATE_FILE}
        paths |= {p.stem: p for p in sorted((self.directory / TEMPLATE_FOLDER).glob("*.jinja"))}
        found = {name: self._text(path) for name, path in paths.items() if path.is_file()}
        if found:
            return found
        for file in ("chat_template.json", "tokenizer_config.json"):
            given = self._values[file].get("chat_template")
            if given is None:
                continue
            template = given
            if isinstance(given, list):  # several, by name
                entries = [entry if isinstance(entry, Mapping) else {} for entry in given]
                template = {entry.get("name"): entry.get("template") for entry in entries}
            if isinstance(template, Mapping):
                texts = [text for pair in template.items() for text in pair]
                is_template = bool(texts) and all(isinstance(text, str) for text in texts)
            else:
                is_template = isinstance(template, str)
            if is_template:
                return template
            expected = "jinja text, or a list of objects with a name and a template"
            self._add(file, "chat_template", expected, given)
        return None

    def _named_id(self, key: str, token_to_id: Callable[[str], int | None]) -> int | None:
        """Return the id of the token that the tokenizer's own files name."""
        given = [(file, self._values[file].get(key)) for file in _TOKEN_FILES]
        named = (pair for pair in given if pair[1] not in (None, "") and pair[1] is not False)
        file, token = next(named, ("", None))
        text = token.get("content") if isinstance(token, Mapping) else token
        if token is None:
            return None
        if not isinstance(text, str):
            self._add(file, key, "the text of a token, in quotes", token)
            return None
        # No vocabulary holds half a character, and the library cannot even be asked for one.
        token_id = None if texts.LONE_SURROGATE.search(text) else token_to_id(text)
        if token_id is None:
            self.problems.append(
                f"{self.directory / file}: {key} {text!r} is not in the tokenizer's vocabulary; "
                "name a token that is"
            )
        return token_id

    def _ids(self, file: str, key: str) -> list[int]:
        value = self._values[file].get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(i) is int and -1 <= i < 2**31 for i in ids):
            self._add(file, key, "the number of a token, or a list of numbers", value)
            return []
        return [i for i in ids if i >= 0]  # -1 says that there is none

    def _add(self, file: str, key: str, expected: str, found: Any) -> None:
        problem = f"{self.directory / file}: {key} must be {expected}, found {found!r:.60}"
        if problem not in self.problems:
            self.problems.append(problem)

    def _object(self, path: pathlib.Path) -> dict[str, Any]:
        """Return the object in ``path``, empty if there is no such file."""
        if not path.is_file():
            return {}
        try:
            value = json_text.parse(path.read_bytes())
        except json_text.JsonError as error:
            self.problems.append(f"{path}: {error.problem}; {_AGAIN}")
            return {}
        if not isinstance(value, dict):
            found = type(value).__name__
            self.problems.append(f"{path}: expected a JSON object, found {found}; {_AGAIN}")
            return {}
        return value

    def _text(self, path: pathlib.Path) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            self.problems.append(f"{path}: not UTF-8 at byte {error.start + 1}; {_AGAIN}")
            return ""
