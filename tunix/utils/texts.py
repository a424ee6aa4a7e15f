"""What is wrong with texts that came from elsewhere."""

import re

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character; no encoding can hold one."""


def half_character(found: re.Match[str]) -> str:
    """Return the sentence about a match of :data:`LONE_SURROGATE`, without its subject."""
    return (
        f"holds half a character, {found[0]!r} at position {found.start()} (a lone surrogate, as "
        "text that was cut or decoded wrongly has); remove it, or write the whole character"
    )
