"""What part of a reply a reward looks at: the last block of code, or all of it."""

import re

_BLOCK = re.compile(r"^[ \t]*```[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)


def last_block(reply: str) -> str:
    """Return the inside of the last closed block of code, the whole reply if there is none."""
    blocks = _BLOCK.findall(reply)
    return blocks[-1] if blocks else reply
