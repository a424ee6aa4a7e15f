"""Every attention kernel against the reference where it can run here, and which one is chosen.

cuDNN itself needs CUDA: what it is asked for is tested by another implementation of the same call.
Splash runs interpreted.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix.ops import (
    attention,
    cudnn_attention,
    splash_attention,
    tiled_attention,
    visibility,
)

LENGTH = 20
SETTINGS = {"scale": 0.3, "window": None, "softcap": None}
CUDNN = functools.partial(cudnn_attention.attend, implementation="xla")
SPLASH = functools.partial(splash_attention.attend, interpret=True)

SEGMENTS = jnp.array([[1] * 7 + [2] * 10 + [0] * 3, [4] * 20])
PREFIXES = jnp.array([[0] * 7 + [1] * 10 + [0] * 3, [4] * 20])
SPANS = jnp.array([[0] * 2 + [1] * 3 + [0] * 15, [5] * 20])
POSITIONS = jnp.array([[*range(7), *range(10), 0, 0, 0], [*range(4, 24)]])
ORDER = jnp.array(np.stack([np.random.default_rng(i).permutation(LENGTH) for i in range(2)]))
MASK = jnp.asarray(np.random.default_rng(3).random((2, LENGTH, LENGTH)) < 0.5).at[1, 4].set(False)

ANYWHERE = {
    "causality": ({}, {}),
    "segments": ({"segment_ids": SEGMENTS}, {}),
    "a window": ({}, {"window": 4}),
}
BY_MASK = {
    "a window of positions": ({"positions": POSITIONS}, {"window": jnp.int32(4)}),
    "prefixes": ({"segment_ids": SEGMENTS, "prefix_ids": PREFIXES}, {}),
    "spans": ({"segment_ids": SEGMENTS, "span_ids": SPANS}, {"window": 2}),
    "an order": ({"order": ORDER}, {}),
    "a mask with a blind query": ({"mask": MASK}, {}),
}
CASES = [
    *(pytest.param(CUDNN, *case, id=f"cudnn: {name}") for name, case in ANYWHERE.items()),
    *(pytest.param(CUDNN, *case, id=f"cudnn: {name}") for name, case in BY_MASK.items()),
    *(pytest.param(SPLASH, *case, id=f"splash: {name}") for name, case in ANYWHERE.items()),
    pytest.param(SPLASH, {"segment_ids": SEGMENTS}, {"softcap": 0.8}, id="splash: a softcap"),
]


def operands(length=LENGTH, width=8):
    """Return queries of four heads, keys and values of two; bfloat16 holds them exactly."""
    rng = np.random.default_rng(0)
    arrays = (rng.normal(size=(2, length, heads, width)) for heads in (4, 2, 2))
    return tuple(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32) for x in arrays)


@pytest.mark.parametrize(("kernel", "rules", "settings"), CASES)
def test_a_kernel_computes_what_the_reference_computes(kernel, rules, settings):
    seen, settings = visibility.Visibility(**rules), SETTINGS | settings
    reference = functools.partial(tiled_attention.attend, precision="exact")
    args = operands()

    def numbers(attend):
        def run(args, g):
            out, pull = jax.vjp(lambda *args: attend(*args, seen, **settings), *args)
            return out, *pull(g)

        return jax.jit(run)(args, args[0])

    for found, expected in zip(numbers(kernel), numbers(reference), strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, atol=0.015 * float(jnp.abs(expected).max()))
        hidden = (np.asarray(expected) == 0.0).all(axis=-1)
        np.testing.assert_array_equal(np.asarray(found)[hidden], 0.0)


def chosen(platform, *, precision="fast", length=LENGTH, width=8, window=None, **rules):
    """Return the chosen kernel, and why the platform's own was refused."""
    softcap = rules.pop("softcap", None)
    q, _, _ = operands(length, width)
    seen = visibility.Visibility(**rules)
    settings = {"window": window, "softcap": softcap, "precision": precision}
    kernel, refusals = attention.choose(platform, q, seen, **settings)
    return kernel, " ".join(reason for reasons in refusals.values() for reason in reasons)


@pytest.mark.parametrize(
    ("platform", "capability", "request_", "reason"),
    [
        pytest.param("gpu", (8, 0), {}, "", id="cudnn for an A100"),
        pytest.param("gpu", (8, 0), {"width": 128}, "", id="cudnn for heads of 128"),
        pytest.param("gpu", (9, 0), {"width": 256}, "", id="cudnn for heads of 256 on an H100"),
        pytest.param("gpu", (8, 0), {"width": 256}, "up to 128, got 256", id="not on an A100"),
        pytest.param("gpu", (9, 0), {"width": 12}, "multiple of 8", id="not for heads of 12"),
        pytest.param("gpu", (7, 5), {}, "capability 8.0", id="not for a T4"),
        pytest.param("gpu", (), {}, "needs an NVIDIA GPU", id="not for other GPUs"),
        pytest.param("gpu", (9, 0), {"softcap": 5.0}, "softcap", id="not with a softcap"),
        pytest.param("gpu", (9, 0), {"precision": "exact"}, "exact", id="not in exact mode"),
        pytest.param(
            "gpu",
            (9, 0),
            {"segment_ids": SEGMENTS, "prefix_ids": PREFIXES, "window": 3, "span_ids": SPANS},
            "",
            id="cudnn for what a mask can say",
        ),
        pytest.param("gpu", (9, 0), {"length": 5}, "", id="cudnn for odd rows that are causal"),
        pytest.param("gpu", (9, 0), {"length": 5, "window": 3}, "even length", id="not for others"),
        pytest.param("tpu", None, {}, "", id="splash for causality"),
        pytest.param("tpu", None, {"segment_ids": SEGMENTS, "softcap": 5.0}, "", id="segments"),
        pytest.param("tpu", None, {"window": 3}, "", id="a window in places of the row"),
        pytest.param("tpu", None, {"positions": POSITIONS}, "", id="positions that none reads"),
        pytest.param(
            "tpu", None, {"positions": POSITIONS, "window": 3}, "got positions", id="not others"
        ),
        pytest.param(
            "tpu", None, {"window": jnp.int32(3)}, "layers of this scan", id="nor a traced window"
        ),
        pytest.param(
            "tpu",
            None,
            {"segment_ids": SEGMENTS, "prefix_ids": PREFIXES, "order": ORDER},
            "got prefix_ids, order",
            id="nor other rules",
        ),
        pytest.param("tpu", None, {"mask": MASK}, "got mask", id="nor a mask"),
        pytest.param("tpu", None, {"precision": "exact"}, "exact", id="nor exact mode"),
        pytest.param("metal", None, {}, None, id="the reference elsewhere"),
        pytest.param("cpu", None, {}, None, id="the reference on CPU"),
    ],
)
def test_the_kernel_of_a_platform_is_chosen_unless_it_has_a_problem(
    platform, capability, request_, reason, monkeypatch
):
    monkeypatch.setattr(cudnn_attention, "compute_capability", lambda: capability)
    kernel, found = chosen(platform, **request_)
    own = {"gpu": cudnn_attention, "tpu": splash_attention}.get(platform)
    assert kernel is (own if reason == "" else tiled_attention)
    assert (found == "") if not reason else (reason in found)


def test_all_problems_of_a_kernel_are_told(monkeypatch):
    monkeypatch.setattr(cudnn_attention, "compute_capability", tuple)
    monkeypatch.setattr(cudnn_attention, "MOST_PAIRS", 24)
    _, found = chosen("gpu", width=12, length=5, softcap=1.0, window=2)
    for part in ("NVIDIA", "got 12", "softcap", "got 5", "2 x 5 x 5 pairs, above 24"):
        assert part in found
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert "runs on one device, found 4" in chosen("tpu")[1]


def test_the_capability_is_that_of_an_nvidia_gpu_only(monkeypatch):
    assert cudnn_attention.compute_capability() == ()
    for name, expected in (("9.0", (9, 0)), ("12.1", (12, 1)), ("gfx942", ())):
        device = types.SimpleNamespace(compute_capability=name)
        monkeypatch.setattr(jax, "local_devices", lambda device=device: [device])
        assert cudnn_attention.compute_capability() == expected


def test_attention_is_computed_by_the_chosen_kernel(monkeypatch):
    called = []

    def fake(*args, **settings):
        called.append((args, settings))
        return args[0]

    q, k, v = operands()
    kernel = types.SimpleNamespace(__name__="fake", problems=lambda *_, **__: (), attend=fake)
    monkeypatch.setitem(attention.KERNELS, "cpu", (kernel,))
    seen = visibility.Visibility(segment_ids=SEGMENTS)
    assert attention.attend(q, k, v, seen, scale=0.5, window=3, precision="fast") is q
    assert called == [((q, k, v, seen), {"scale": 0.5, "window": 3, "softcap": None})]
