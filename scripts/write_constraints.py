"""Print exact pins of everything that ``pip install .[dev]`` brings, one per line.

Asks pip to resolve from scratch, so that what happens to be installed does not leak in.
"""

import json
import subprocess
import sys

# The optional parts that the constraints cover.
EXTRAS = "dev"


def resolved() -> dict[str, str]:
    """Return the version of every package that pip would install."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
    command += ["--ignore-installed", "--report", "-", f".[{EXTRAS}]"]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    found = {item["metadata"]["name"]: item["metadata"]["version"] for item in report["install"]}
    del found["tunix"]
    return found


def main() -> None:
    """Print the pins."""
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    print(f"# What `pip install .[dev]` brings with {python}. Written by `make constraints`.")
    for name, version in sorted(resolved().items(), key=lambda item: item[0].lower()):
        # A local label (2.13.0+cpu) names one build; the pin must match the others too.
        print(f"{name}=={version.partition('+')[0]}")


if __name__ == "__main__":
    main()
