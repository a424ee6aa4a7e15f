"""Seconds and memory to load a Hugging Face directory, against transformers.

    python scripts/benchmarks/bench_load.py DIR [DIR ...]

A fresh process for each load, the files in the page cache. ``ready_s`` ends when every parameter
has been read once: transformers only maps files of the right type and reads them on first use.
``over_mb`` is the largest resident memory above that of the imported libraries, less the
parameters.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

import harness

SIDES = ("tunix", "transformers")
DTYPES = ("float32", "bfloat16")
MEASURED = ("load_s", "ready_s", "cpu_s", "over_mb", "peak_mb")


def measure_tunix(path: str, dtype: str) -> dict[str, float]:
    """Load with tunix in this process."""
    import jax
    import numpy as np
    from flax import nnx

    from tunix.models import automodel

    jax.block_until_ready(jax.numpy.zeros(1))  # starts the backend
    before, start = _resident_mb("VmRSS"), _now()
    model, _ = automodel.AutoModel.from_pretrained(path, dtype=dtype)
    leaves = jax.block_until_ready(jax.tree.leaves(nnx.state(model)))
    loaded = _now()
    for leaf in leaves:
        np.asarray(leaf).view(np.uint8).reshape(-1)[::4096].max()  # one byte of every page
    return _row(before, start, loaded, _now(), sum(leaf.nbytes for leaf in leaves))


def measure_transformers(path: str, dtype: str) -> dict[str, float]:
    """Load with transformers in this process."""
    import torch
    import transformers
    from transformers.models.auto import modeling_auto

    config = transformers.AutoConfig.from_pretrained(path)
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]  # imports the model's code
    before, start = _resident_mb("VmRSS"), _now()
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
    loaded = _now()
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.view(torch.uint8).view(-1)[::4096].max()  # one byte of every page
    return _row(before, start, loaded, _now(), sum(p.nbytes for p in parameters))


def _row(
    before: float,
    start: tuple[float, float],
    loaded: tuple[float, float],
    ready: tuple[float, float],
    num_bytes: int,
) -> dict[str, float]:
    peak = _resident_mb("VmHWM")
    return {
        "load_s": loaded[0] - start[0],
        "ready_s": ready[0] - start[0],
        "cpu_s": ready[1] - start[1],
        "parameters_mb": num_bytes / 2**20,
        "over_mb": peak - before - num_bytes / 2**20,
        "peak_mb": peak,
    }


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _resident_mb(field: str) -> float:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def run(side: str, path: str, dtype: str) -> dict[str, float]:
    """Return what one load in a fresh process measures."""
    command = [sys.executable, __file__, path, "--side", side, "--dtype", dtype]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure both sides in turn, in both types, and print one JSON line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directories", nargs="+", metavar="DIR")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", choices=DTYPES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        measure = measure_tunix if options.side == "tunix" else measure_transformers
        print(json.dumps(measure(options.directories[0], options.dtype)))
        return
    for path in options.directories:
        for dtype in DTYPES:
            found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
            for _ in range(options.repeats):
                for side in SIDES:
                    found[side].append(run(side, path, dtype))
            for side, rows in found.items():
                medians = {name: statistics.median(row[name] for row in rows) for name in MEASURED}
                line = {
                    "benchmark": f"load_{pathlib.Path(path).name}_{dtype}",
                    "side": side,
                    "repeats": options.repeats,
                    **{name: round(value, 3) for name, value in medians.items()},
                    "parameters_mb": round(rows[0]["parameters_mb"], 1),
                    "device": harness.device(),
                    "commit": harness.commit(),
                }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
