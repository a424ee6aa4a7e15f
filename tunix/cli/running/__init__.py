"""A run of the command line: its plan, its directory, its course and what it tells."""
