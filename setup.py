"""What pyproject.toml cannot say: the README as a package index shows it."""

import pathlib
import re

import setuptools

README = pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8")
# There a link to a file of the repository leads nowhere: its text stays, with the path, which the
# source distribution has too.
RELATIVE_LINK = re.compile(r"\[`?([^\]`]+)`?\]\((?!\w+:|#)([^)]+)\)")


def without_link(link: re.Match[str]) -> str:
    """Return ``text (`path`)``, or the path alone where it is the text."""
    text, path = link.groups()
    return f"`{path}`" if text in path else f"{text} (`{path}`)"


setuptools.setup(
    long_description=RELATIVE_LINK.sub(without_link, README),
    long_description_content_type="text/markdown",
)
