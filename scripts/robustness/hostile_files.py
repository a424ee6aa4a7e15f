"""Feeds thousands of damaged files to every reader of the library.

    python -m scripts.robustness.hostile_files [--cases 2000] [--seed 0] [--only KIND:NUMBER]

Each file is a sound one with random damage: to its bytes, or to one value of what it says. The
outcome must be a correct load (other readers of the format agree) or one message that names the
file, within 20 seconds of processor time and 2 GiB. Prints what was neither and how to see it
again, and exits with 1 if there was anything.
"""

import argparse
import collections
import json
import pathlib
import random
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

from scripts.robustness import mutations, samples

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = 180.0
"""Seconds by the clock after which a reader that uses no processor hangs."""

_bytes, _json = mutations.bytes_damaged, mutations.json_damaged
# Kind, its part of the cases, its reader, the damaged file's folder and name, the damage.
Kind = tuple[int, str, str, str, tuple[Callable[[bytes, random.Random], bytes], ...]]
KINDS: dict[str, Kind] = {
    "json-lines": (14, "rows", "", "rows.jsonl", (_bytes, mutations.json_lines_damaged)),
    "json": (7, "rows", "", "rows.json", (_bytes, _json)),
    "parquet": (10, "rows", "", "rows.parquet", (_bytes,)),
    "safetensors": (
        14,
        "model",
        "model",
        "model.safetensors",
        (_bytes, mutations.safetensors_damaged, mutations.safetensors_damaged),
    ),
    "index": (6, "model", "sharded", "model.safetensors.index.json", (_bytes, _json, _json)),
    "config": (14, "model", "model", "config.json", (_bytes, _json, _json, _json)),
    "tokenizer": (8, "tokenizer", "model", "tokenizer.json", (_bytes, _json)),
    "tokenizer-config": (8, "tokenizer", "model", "tokenizer_config.json", (_bytes, _json, _json)),
    "generation-config": (3, "tokenizer", "model", "generation_config.json", (_bytes, _json)),
    "gguf": (8, "gguf", "", "model.gguf", (_bytes,)),
    "settings": (8, "settings", "", "run.yaml", (_bytes, mutations.yaml_damaged)),
}


class Reader:
    """A process that reads files, replaced when it dies or hangs."""

    def __init__(self, sound: pathlib.Path):
        """Warm every new process up on the files of ``sound``."""
        self._sound = sound
        self._process: subprocess.Popen[str] | None = None

    def judge(self, reader: str, folder: pathlib.Path, name: str) -> str:
        """Return what is wrong with how a file is read, empty if nothing is."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "scripts.robustness.readers"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for warm_up, place, file in [(k[1], k[2], k[3]) for k in KINDS.values()]:
                if found := self._ask(warm_up, self._sound / place, file, is_sound=True):
                    raise SystemExit(f"{file} as it was written is not read: {found}")
        return self._ask(reader, folder, name, is_sound=False)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _ask(self, reader: str, folder: pathlib.Path, name: str, *, is_sound: bool) -> str:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        question = {"reader": reader, "folder": str(folder), "name": name, "is_sound": is_sound}
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], PATIENCE)[0]:
            self.close()
            return f"no answer after {PATIENCE:.0f} seconds"
        answer = process.stdout.readline()
        if not answer:
            code = process.wait()
            self._process = None
            return f"the process died with {code} (-24: processor time; -6, -9, -11: memory)"
        return json.loads(answer)


def cases(total: int, seed: int) -> Iterator[tuple[str, int]]:
    """Yield the kind and the seed of every case."""
    parts = sum(kind[0] for kind in KINDS.values())
    for name, kind in KINDS.items():
        count = max(1, round(total * kind[0] / parts))
        yield from ((name, seed * 1_000_000 + i) for i in range(count))


def attack(total: int, seed: int, only: tuple[str, int] | None = None) -> list[str]:
    """Return one line per case that went wrong."""
    failures, counts = [], collections.Counter()
    with tempfile.TemporaryDirectory() as directory:
        sound = pathlib.Path(directory) / "sound"
        sound.mkdir()
        samples.write(sound)
        reader = Reader(sound)
        for kind, number in [only] if only else cases(total, seed):
            _, how, place, name, damages = KINDS[kind]
            folder = pathlib.Path(directory) / "damaged"
            shutil.copytree(sound, folder)
            path = folder / place / name
            rng = random.Random(f"{kind}:{number}")
            path.write_bytes(rng.choice(damages)(path.read_bytes(), rng))
            if found := reader.judge(how, folder / place, name):
                failures.append(f"{kind}:{number}: {found}")
                print(failures[-1], flush=True)
            counts[kind] += 1
            shutil.rmtree(folder)
        reader.close()
    print(f"{sum(counts.values())} cases ({dict(counts)}), {len(failures)} wrong")
    return failures


def main() -> int:
    """Run the attack."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one case again, as KIND:NUMBER")
    options = parser.parse_args()
    only = None
    if options.only:
        kind, _, number = options.only.partition(":")
        only = (kind, int(number))
    return 1 if attack(options.cases, options.seed, only) else 0


if __name__ == "__main__":
    sys.exit(main())
