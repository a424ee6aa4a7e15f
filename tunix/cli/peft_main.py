"""``python -m tunix.cli.peft_main``: ``tunix sft`` under the name google-tunix has for it."""

import sys

from tunix.cli import errors, sft_main

main = sft_main.main

if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv))
