"""Where commands print what users read."""

import rich.console

OUT = rich.console.Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
"""Prints text as it is: paths and data may hold ``[bold]`` or ``:smile:``."""
