"""One decoder for every family: mechanisms live here, families are data."""
