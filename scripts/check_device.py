r"""Is everything right on this GPU or TPU, and how fast is it? One file, JSON lines.

    python check_device.py [--sizes tiny,experts,135m] [--skip-speed] > lines.jsonl

Random weights only, nothing is downloaded. First every number is compared with what the CPU of
the same machine computes for the same weights (in a process of its own, in float32), then speed is
measured. What fails says so in its line and the rest goes on; the exit code is 1 then. Without an
accelerator the CPU is checked against itself.

The machine needs Python 3.12 and a JAX (0.11 or later) that sees its device, and no network. Carry
the rest along as wheels; where there is a network, in a checkout of tunix on a like system::

    pip wheel --no-deps -w wheels .
    pip download -d wheels --only-binary=:all: --python-version 3.12 \
        -c constraints-3.12.txt wheels/tunix-*.whl
    rm -f wheels/jax-* wheels/jaxlib-*       # the machine has its own, made for its device

and there::

    python -m pip install --no-index --find-links wheels tunix

``exact`` multiplies in float32 at the device's highest precision, ``fast`` rounds operands to
bfloat16; both are held against the exact CPU. MFU is null where the device's peak is unknown.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import itertools
import json
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import tunix
from tunix.generate import engine as engine_lib
from tunix.generate import sampling_params
from tunix.models import dummy_model_creator, flops, lora
from tunix.models.llama3 import model as llama3
from tunix.ops import attention, cached_attention, visibility
from tunix.perf import compile_counter, machine
from tunix.rl.rollout import mock_rollout

Numbers = dict[str, np.ndarray]
BIG = llama3.ModelConfig.smollm2_135m()
TINY = dataclasses.replace(
    BIG, num_layers=2, vocab_size=512, embed_dim=64, hidden_dim=128, num_heads=4, num_kv_heads=2
)
EXPERTS = dataclasses.replace(TINY, num_experts=4, num_experts_per_tok=2, weight_tying=False)
SIZES: Mapping[str, llama3.ModelConfig] = {"tiny": TINY, "experts": EXPERTS, "135m": BIG}
TOLERANCES: Mapping[str, Mapping[str, float]] = {
    "exact": {"value": 1e-4, "change": 1e-3, "logps": 2e-4, "frequency": 0.14},
    "fast": {"value": 8e-2, "change": 3e-1, "logps": 3e-1, "frequency": 0.14},
}
"""``value``: relative error of what a pass computes; ``change``: of how steps change weights;
``logps``: largest difference of a log-probability; ``frequency``: total variation between 8,192
draws and the probabilities of 512 tokens, of which 0.1 comes of chance alone."""


class _IdsAsText:
    """A tokenizer whose text is token ids: ``"3 14 15"``."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Any) -> str:
        return " ".join(str(i) for i in ids)

    def eos_id(self) -> int:
        return 2

    bos_id = pad_id = eos_id


def make_model(size: str, precision: str) -> llama3.Llama3:
    """Return the model of a size; equal weights on every machine, numpy draws them."""
    config = dataclasses.replace(SIZES[size], precision=precision)
    return dummy_model_creator.create_dummy_model(llama3.Llama3, config, scale=0.05)


def token_rows(size: str, rows: int, length: int, seed: int = 0) -> np.ndarray:
    """Return random tokens ``[rows, length]``."""
    rng = np.random.default_rng(seed)
    return rng.integers(3, SIZES[size].vocab_size, (rows, length), dtype=np.int32)


def weights_of(model: nnx.Module, only: Any = nnx.Param) -> np.ndarray:
    """Return up to 4,096 elements of every array, spread over it, in one row."""
    leaves = [jnp.ravel(leaf[...]) for _, leaf in nnx.to_flat_state(nnx.state(model, only))]
    return np.concatenate([np.asarray(x[:: -(-x.size // 4096)], np.float64) for x in leaves])


def forward(size: str, precision: str) -> Numbers:
    """Logits of two rows."""
    logits = nnx.jit(lambda model, tokens: model(tokens)[0])
    found = logits(make_model(size, precision), token_rows(size, 2, 48))
    return {"value/logits": np.asarray(found)}


def train(size: str, precision: str, *, adapters: bool = False) -> Numbers:
    """Losses of two steps, and how they changed the weights; of LoRA only the adapters."""
    model: Any = make_model(size, precision)
    if adapters:  # B starts at zero, so the first step changes it alone and the second A too
        model = lora.apply_lora(model, lora.LoraConfig(rank=4, alpha=8.0), rngs=nnx.Rngs(1))
    only = nnx.LoRAParam if adapters else nnx.Param
    before = weights_of(model, only)
    trainer = tunix.PeftTrainer(model, optax.sgd(0.1), tunix.TrainingConfig(eval_every_n_steps=99))
    rows = [token_rows(size, 2, 48, seed) for seed in (1, 2)]
    trainer.train([tunix.TrainingInput(input_tokens=x, input_mask=np.ones_like(x)) for x in rows])
    losses = trainer.metrics_logger.get_metric_history("", "loss", "train")
    change = weights_of(trainer.model, only) - before
    return {"value/losses": np.asarray(losses, np.float32), "change/weights": change}


def grpo(size: str, precision: str) -> Numbers:
    """How two steps on given completions change the weights: clipping, KL and packing included."""
    actor, reference = (make_model(size, precision) for _ in range(2))
    before = weights_of(actor)
    words = range(3, SIZES[size].vocab_size)
    config = tunix.ClusterConfig(
        training_config=tunix.RLTrainingConfig(
            actor_optimizer=optax.sgd(0.1), eval_every_n_steps=10**9, max_steps=2
        ),
        rollout_config=tunix.RolloutConfig(max_tokens_to_generate=12, max_prompt_length=8),
        rollout_engine=functools.partial(mock_rollout.MockRollout, vocabulary=words),
    )
    roles: Any = {"actor": actor, "reference": reference, "tokenizer": _IdsAsText()}
    cluster = tunix.RLCluster(**roles, cluster_config=config)
    prompts = [" ".join(map(str, row)) for row in token_rows(size, 2, 6)]
    # The dual clip: ratios to draws that the policy did not make are exponentials of their noise.
    settings = tunix.GRPOConfig(num_generations=4, beta=0.05, epsilon_c=3.0)
    learner = tunix.GRPOLearner(cluster, settings, even_share)
    learner.train([{"prompts": prompts}] * 2)
    change = weights_of(cluster.actor_trainer.model) - before
    cluster.close()
    return {"change/weights": change}


def even_share(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Return how many of the words, at most 12, end in an even digit."""
    return [sum(w[-1] in "02468" for w in text.split()) / 12 for text in completions]


def kernels(precision: str) -> Numbers:
    """Attention with its gradients over several chunks, and attention to a cache."""
    rng = np.random.default_rng(3)
    length, heads, keys, width = 2304, 4, 2, 32

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    q, g = normal(1, length, heads, width), normal(1, length, heads, width)
    k, v = normal(1, length, keys, width), normal(1, length, keys, width)
    segments = jnp.asarray(np.repeat([[1, 2, 0]], [900, 1304, 100], axis=1).astype(np.int32))
    packed = {"visibility": visibility.Visibility(segment_ids=segments), "softcap": 20.0}
    rules: Any = {"causal": {}, "window": {"window": 100}, "packed": packed}
    how: Any = {"scale": width**-0.5, "precision": precision}
    found = {}
    for name, rule in rules.items():
        attend = functools.partial(attention.attend, **how, **rule)
        out, pull = jax.jit(functools.partial(jax.vjp, attend))(q, k, v)
        numbers = {"out": out} | dict(zip(("dq", "dk", "dv"), jax.jit(pull)(g), strict=True))
        found |= {f"value/{name} {of}": np.asarray(x) for of, x in numbers.items()}
    lengths, slots = jnp.asarray([0, 700]), jnp.arange(1024)[None]
    for new in (1, 7):
        cache = cached_attention.empty(2, 1024, keys, width, jnp.float32)
        stored = normal(2, 2, 1024, keys, width), normal(2, 2, new, keys, width)
        cache = cached_attention.write(*cache, *stored[0], slots)
        cache = cached_attention.write(*cache, *stored[1], lengths[:, None] + jnp.arange(new))
        attend = jax.jit(functools.partial(cached_attention.attend_cached, **how))
        out = attend(normal(2, new, heads, width), *cache, lengths=lengths)
        found[f"value/cached {new}"] = np.asarray(out)
    return found


CHECKS: Mapping[str, Callable[[str, str], Numbers]] = {
    "forward": forward,
    "train": train,
    "lora": functools.partial(train, adapters=True),
    "grpo": grpo,
}


def sample(size: str, precision: str) -> Numbers:
    """Tokens drawn after prompts of several lengths, and the log-probabilities that came along."""
    prompts = [token_rows(size, 1, n, seed=n)[0] for n in (3, 9, 17, 24)]
    params = sampling_params.SamplingParams(max_new_tokens=16)
    model = make_model(size, precision)
    sampler = engine_lib.Engine(model, max_slots=3, cache_size=64)
    drawn = sampler.generate([p.tolist() for p in prompts], params, key=jax.random.key(0))
    found = {}
    for i, (prompt, one) in enumerate(zip(prompts, drawn, strict=True)):
        found |= {f"prompt_{i}": prompt, f"tokens_{i}": one.token_ids, f"logps_{i}": one.logps}
    if size == "tiny":
        once = sampling_params.SamplingParams(max_new_tokens=1)
        sampler = engine_lib.Engine(model, max_slots=64, cache_size=16)
        many = sampler.generate([prompts[0].tolist()] * 8192, once, key=jax.random.key(1))
        counts = np.bincount([one.token_ids[0] for one in many], minlength=TINY.vocab_size)
        found["frequencies"] = counts / counts.sum()
    return found


def score(size: str, drawn: Numbers) -> Numbers:
    """What an exact forward pass says of drawn tokens: the reference of :func:`sample`."""
    model = make_model(size, "exact")
    found = {}
    for i in range(4):
        prompt, tokens = drawn[f"prompt_{i}"], drawn[f"tokens_{i}"]
        logits = model(jnp.asarray(np.concatenate([prompt, tokens]))[None])[0][0]
        logps = np.asarray(jax.nn.log_softmax(logits))[len(prompt) - 1 : -1]
        found[f"logps_{i}"] = logps[np.arange(len(tokens)), tokens]
        if i == 0 and "frequencies" in drawn:
            found["frequencies"] = np.exp(logps[0])
    return found


def computed_on_cpu(sizes: list[str], drawn: Mapping[str, Numbers]) -> dict[str, Any]:
    """Return the reference of every check, from a process that has the CPU alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "numbers.pickle"
        path.write_bytes(pickle.dumps(drawn))
        command = [sys.executable, __file__, "--sizes", ",".join(sizes), "--reference", str(path)]
        subprocess.run(command, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
        return pickle.loads(path.read_bytes())


def write_reference(sizes: list[str], path: pathlib.Path) -> None:
    """Write what :func:`computed_on_cpu` reads: every check with ``exact``."""
    drawn = pickle.loads(path.read_bytes())
    bodies = {"kernels": functools.partial(kernels, "exact")}
    for size, (name, check) in itertools.product(sizes, CHECKS.items()):
        bodies[f"{name} {size}"] = functools.partial(check, size, "exact")
    for name, numbers in drawn.items():
        bodies[name] = functools.partial(score, name.split()[1], numbers)
    wanted = {name: guarded({"reference": name}, body) for name, body in bodies.items()}
    path.write_bytes(pickle.dumps(wanted))


def errors(found: Numbers, wanted: Numbers) -> Iterator[tuple[str, str, float]]:
    """Yield ``(name, kind of tolerance, error)`` of everything that has a reference."""
    for name, value in wanted.items():
        difference = found[name].astype(np.float64) - value
        if name == "frequencies":
            yield name, "frequency", float(np.abs(difference).sum() / 2)
        elif name.startswith("logps_"):
            yield name, "logps", float(np.abs(difference).max())
        else:
            norm = float(np.linalg.norm(value.astype(np.float64)))
            kind, _, name = name.partition("/")
            yield name, kind, float(np.linalg.norm(difference)) / norm


def print_line(line: Mapping[str, Any]) -> None:
    """Print a line of JSON at once."""
    print(json.dumps(line), flush=True)


def guarded(what: Mapping[str, Any], body: Callable[[], Any]) -> Any:
    """Return what ``body`` does; if it fails say so in a line, so that the rest goes on."""
    try:
        return body()
    except Exception as error:
        traceback.print_exc()
        print_line({**what, "ok": False, "failed": f"{type(error).__name__}: {error}"[:500]})
        return None


def check_numbers(sizes: list[str]) -> bool:
    """Run every check on the default device, compare, print; return whether all is right."""
    found: dict[tuple[str, str], Numbers | None] = {}
    for precision in TOLERANCES:
        bodies = {"kernels": functools.partial(kernels, precision)}
        for size, (name, check) in itertools.product(sizes, [*CHECKS.items(), ("sample", sample)]):
            bodies[f"{name} {size}"] = functools.partial(check, size, precision)
        for name, body in bodies.items():
            found[name, precision] = guarded({"check": name, "precision": precision}, body)
    done = {" ".join(label): numbers for label, numbers in found.items() if numbers is not None}
    samples = {label: done[label] for label in done if label.startswith("sample ")}
    wanted = computed_on_cpu(sizes, samples)
    all_right = None not in [*found.values(), *wanted.values()]
    for (name, precision), numbers in found.items():
        reference = wanted.get(name) or wanted.get(f"{name} {precision}")
        for of, kind, error in errors(numbers, reference) if numbers and reference else ():
            limit = TOLERANCES[precision][kind]
            what = {"check": name, "precision": precision, "number": of, "error": error}
            print_line({**what, "tolerance": limit, "ok": error <= limit})
            all_right = all_right and error <= limit  # which NaN is not
    return all_right


def timed(body: Callable[[], Any], tokens: int, operations: float) -> dict[str, Any]:
    """Run ``body`` once to compile and once on the clock, and return what that took."""
    with compile_counter.CompileCounter() as counter:
        start = time.perf_counter()
        body()
        middle = time.perf_counter()
    body()
    seconds = time.perf_counter() - middle
    device, rate = jax.devices()[0], tokens * operations / seconds
    peak = machine.peak_flops(device.device_kind)
    return {
        "tokens_per_second": tokens / seconds,
        "tflops_per_second": rate / 1e12,
        "mfu": None if peak is None else rate / peak,  # of the bfloat16 peak, exact too
        "seconds": seconds,
        "first_seconds": middle - start,
        "compile_seconds": counter.seconds,
        # Of the process so far: devices do not forget their peak.
        "peak_device_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
        "host_bytes": machine.host_bytes(),
    }


def time_training(size: str, precision: str, rows: int, length: int, steps: int) -> dict[str, Any]:
    """Time training steps of AdamW."""
    options = tunix.TrainingConfig(eval_every_n_steps=10**9)
    trainer = tunix.PeftTrainer(make_model(size, precision), optax.adamw(1e-5), options)
    tokens = token_rows(size, rows, length)
    batches = [tunix.TrainingInput(input_tokens=tokens, input_mask=np.ones_like(tokens))] * steps
    operations = flops.training_flops_per_token(SIZES[size], length / 2)

    def body() -> None:
        trainer.train(batches)
        jax.block_until_ready(nnx.state(trainer.model))

    return timed(body, rows * length * steps, operations)


def time_sampling(size: str, precision: str, rows: int, length: int, new: int) -> dict[str, Any]:
    """Time sampling with log-probabilities; prefill included, only new tokens count."""
    model = make_model(size, precision)
    sampler = engine_lib.Engine(model, max_slots=rows, cache_size=length + new)
    prompts = token_rows(size, rows, length).tolist()
    params = sampling_params.SamplingParams(max_new_tokens=new)
    body = functools.partial(sampler.generate, prompts, params, key=jax.random.key(0))
    operations = flops.forward_flops_per_token(SIZES[size], length + new / 2)
    return timed(body, rows * new, operations)


SPEEDS: Any = {
    "train": (time_training, {"rows": 2, "length": 64, "steps": 2}, (16, 1024, 10)),
    "sample": (time_sampling, {"rows": 4, "length": 32, "new": 16}, (64, 256, 128)),
}
"""What is measured, on a CPU, and of which shape on anything faster."""


def measure_speed(sizes: list[str]) -> bool:
    """Print a line for every size and precision; return whether all could be measured."""
    all_measured = True
    for size, precision, name in itertools.product(sizes, TOLERANCES, SPEEDS):
        measure, shape, greater = SPEEDS[name]
        if jax.default_backend() != "cpu":
            shape = dict(zip(shape, greater, strict=True))
        what = {"speed": name, "size": size, "precision": precision, **shape}
        numbers = guarded(what, functools.partial(measure, size, precision, **shape))
        if numbers is not None:
            print_line({**what, **numbers})
        all_measured = all_measured and numbers is not None
    return all_measured


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; return 0 if everything is right."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default=",".join(SIZES), help="models, separated by commas")
    parser.add_argument("--skip-speed", action="store_true", help="compare numbers only")
    parser.add_argument("--reference", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    sizes = options.sizes.split(",")
    if unknown := set(sizes) - set(SIZES):
        parser.error(f"--sizes {sorted(unknown)} are not among {list(SIZES)}")
    if options.reference is not None:
        write_reference(sizes, pathlib.Path(options.reference))
        return 0
    kind, backend = jax.devices()[0].device_kind, jax.default_backend()
    names = ("tunix", "jax", "jaxlib", "flax", "optax")
    versions = {name: importlib.metadata.version(name) for name in names}
    print_line({"device": kind, "backend": backend, "devices": jax.device_count(), **versions})
    right = check_numbers(sizes)
    measured = options.skip_speed or measure_speed(sizes)
    print_line({"all_right": right, "all_measured": measured})
    return 0 if right and measured else 1


if __name__ == "__main__":
    sys.exit(main())
