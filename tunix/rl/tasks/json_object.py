"""A JSON object with a name and an age, read off a sentence."""

import json
from typing import Any

from tunix.rl.tasks import task

FIRST_NAMES = (
    "Anna Ben Clara David Emma Felix Grace Henry Ivy Jack Kate Leo Maria Noah Olivia Paul "
    "Quinn Rosa Sam Tina Victor Wendy Alice Oscar"
)
NAMES = tuple(FIRST_NAMES.split())
AGES = range(18, 78)


def questions() -> list[task.Question]:
    """Return a question for every name and age."""
    return [
        task.Question(
            text=f'{name} is {age} years old. Write a JSON object with the keys "name" and "age" '
            "for this person. Answer with just the JSON object.",
            answer={"name": name, "age": age},
            key=(name, age),
        )
        for name in NAMES
        for age in AGES
    ]


def just_the_object(
    completions: list[str], answer: list[dict[str, Any]], finish_reasons: list[str]
) -> list[float]:
    """Return 1 where the whole reply parses to the answer and ended by itself."""
    right = [_parses_to(reply, wanted) for reply, wanted in zip(completions, answer, strict=True)]
    return task.reward_where(right, finish_reasons)


def _parses_to(reply: str, wanted: dict[str, Any]) -> bool:
    try:
        return json.loads(reply) == wanted
    except (ValueError, RecursionError):  # a model may well write [[[[... or 5,000 digits
        return False


JSON_OBJECT = task.Task(
    name="json_object", questions=questions, reward_fn=just_the_object, max_tokens_to_generate=32
)
