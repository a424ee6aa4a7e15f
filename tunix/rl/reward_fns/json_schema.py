"""Rewards for JSON that fits a schema; needs the extra ``jsonschema``."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tunix.rl.reward_fns import texts


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonSchema:
    """Scores a reply with 1 if it is JSON that fits the row's schema, in whole or in a code block.

    The column ``schema`` holds a JSON schema, as a mapping or as text. A schema refers to nothing
    outside of itself: nothing is fetched.
    """

    parses: float = 0.0
    """What JSON is worth that does not fit."""

    def __call__(
        self, completions: Sequence[str], schema: Sequence[Mapping[str, Any] | str | None]
    ) -> list[float | None]:
        """Return the scores; ``None`` for a row without a schema.

        Raises:
            ImportError: If ``jsonschema`` is not installed.
            ValueError: If a schema is none.
        """
        return [
            None if one is None else self._score(completion, _as_mapping(one))
            for completion, one in zip(completions, schema, strict=True)
        ]

    def _score(self, completion: str, schema: Mapping[str, Any]) -> float:
        validator = _validator(schema)
        try:
            value = json.loads(texts.last_block(completion), parse_constant=_refuse)
            fits = validator.is_valid(value)
        except (ValueError, RecursionError):  # a model may well write [[[[... or 5,000 digits
            return 0.0
        return 1.0 if fits else self.parses


def _as_mapping(schema: Mapping[str, Any] | str) -> Mapping[str, Any]:
    try:
        found = json.loads(schema) if isinstance(schema, str) else schema
    except ValueError as error:
        raise ValueError(f"this is no JSON schema: {error}, in {schema!r}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"this is no JSON schema: {found!r}; a mapping is expected")
    return found


def _validator(schema: Mapping[str, Any]) -> Any:
    try:
        import jsonschema
        import referencing  # pyright: ignore[reportMissingImports]
        from jsonschema import validators
    except ImportError as error:
        raise ImportError(
            "the JSON schema reward needs jsonschema: pip install 'tunix[jsonschema]'"
        ) from error
    kind = validators.validator_for(schema, jsonschema.Draft202012Validator)
    try:
        kind.check_schema(dict(schema))
    except jsonschema.SchemaError as error:
        raise ValueError(f"this is no JSON schema: {error.message}") from error
    return kind(dict(schema), registry=referencing.Registry())


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
