"""``python -m tunix.cli.peft_main``: ``tunix sft`` under the name google-tunix has for it."""

import sys

from tunix.cli import errors, sft_main
from tunix.utils import reference_names

main = sft_main.main

if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv))


__getattr__ = reference_names.hints(__name__)
