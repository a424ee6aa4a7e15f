"""The fused head against plain log_softmax, its gradients, and its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix.ops import linear_logprob, vocab_tiles

N, D, V = 37, 16, 101  # neither a multiple of the chunk nor even
HEAD_SHAPE = (V, D)


@pytest.fixture(name="inputs")
def _inputs():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(N, D)), jnp.float32)
    head = jnp.asarray(rng.normal(size=HEAD_SHAPE), jnp.float32)
    targets = jnp.asarray(rng.integers(0, V, N), jnp.int32)
    weights = jnp.asarray(rng.uniform(size=N), jnp.float32).at[5].set(0.0)
    return hidden, head, targets, weights


@pytest.fixture(name="blocks", params=[101, 32], ids=["one block", "four blocks"])
def _blocks(request, monkeypatch):
    """Cut the vocabulary of 101 entries into blocks, the last one padded."""
    monkeypatch.setattr(vocab_tiles, "CPU_BLOCK", request.param)


def naive_logits(hidden, head, temperature=1.0, softcap=None):
    logits = jnp.dot(hidden, head.T, precision="highest")
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    return logits / temperature


def naive_logprob(hidden, head, targets, **scaling):
    log_probs = jax.nn.log_softmax(naive_logits(hidden, head, **scaling))
    logps = jnp.take_along_axis(log_probs, targets[:, None], axis=1)[:, 0]
    return logps, -(jnp.exp(log_probs) * log_probs).sum(axis=1)


def naive_cross_entropy(hidden, head, targets, weights, softcap, smoothing, z_loss):
    logits = naive_logits(hidden, head, softcap=softcap)
    target = jax.nn.one_hot(targets, V) * (1 - smoothing) + smoothing / V
    losses = -(target * jax.nn.log_softmax(logits)).sum(1)
    losses += z_loss * jax.nn.logsumexp(logits, axis=1) ** 2
    return (weights * losses).sum()


def assert_trees_close(actual, expected, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), actual, expected)


def test_two_classes_worked_by_hand():
    # logits 0 and ln 3, so probabilities 1/4 and 3/4.
    head = jnp.array([[0.0], [np.log(3.0)]])
    result = linear_logprob.linear_logprob(
        jnp.ones((2, 1)), head, jnp.array([0, 1]), with_entropy=True, precision="exact"
    )
    np.testing.assert_allclose(result.logps, np.log([0.25, 0.75]), rtol=1e-6)
    assert result.entropy is not None
    np.testing.assert_allclose(result.entropy, np.log(4) - 0.75 * np.log(3), rtol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 8, 36, 37, None])
@pytest.mark.usefixtures("blocks")
def test_values_do_not_depend_on_the_chunk(inputs, chunk_size):
    hidden, head, targets, weights = inputs
    result = linear_logprob.linear_logprob(
        hidden, head, targets, with_entropy=True, chunk_size=chunk_size, precision="exact"
    )
    logps, entropy = naive_logprob(hidden, head, targets)
    np.testing.assert_allclose(result.logps, logps, atol=3e-6)
    np.testing.assert_allclose(result.entropy, entropy, atol=3e-6)
    loss, detached = linear_logprob.linear_cross_entropy(
        hidden, head, targets, weights, chunk_size=chunk_size, precision="exact"
    )
    np.testing.assert_allclose(loss, -(weights * logps).sum(), rtol=1e-6)
    np.testing.assert_allclose(detached, logps, atol=3e-6)


@pytest.mark.parametrize(
    ("temperature", "softcap", "with_entropy"),
    [(1.0, None, False), (0.7, None, True), (1.0, 3.0, False), (0.7, 3.0, True)],
)
@pytest.mark.usefixtures("blocks")
def test_gradients_of_any_loss_match_autodiff(inputs, temperature, softcap, with_entropy):
    hidden, head, targets, weights = inputs

    def downstream(logps, entropy):
        # Nonlinear in the log-probabilities, like a policy ratio.
        loss = (weights * jnp.exp(0.3 * logps)).sum()
        return loss + 0.1 * (weights * entropy**2).sum() if with_entropy else loss

    def ours(hidden, head):
        result = linear_logprob.linear_logprob(
            hidden,
            head,
            targets,
            temperature=temperature,
            softcap=softcap,
            with_entropy=with_entropy,
            chunk_size=8,
            precision="exact",
        )
        return downstream(*result)

    def naive(hidden, head):
        scaling = {"temperature": temperature, "softcap": softcap}
        return downstream(*naive_logprob(hidden, head, targets, **scaling))

    value, grads = jax.jit(jax.value_and_grad(ours, (0, 1)))(hidden, head)
    expected, expected_grads = jax.value_and_grad(naive, (0, 1))(hidden, head)
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    assert_trees_close(grads, expected_grads, atol=5e-6)


@pytest.mark.parametrize(
    ("softcap", "smoothing", "z_loss"),
    [(None, 0.0, 0.0), (3.0, 0.0, 0.0), (None, 0.1, 0.0), (None, 0.0, 0.01), (3.0, 0.1, 0.01)],
)
def test_cross_entropy_gradients_match_autodiff(inputs, softcap, smoothing, z_loss):
    hidden, head, targets, weights = inputs

    def ours(hidden, head, weights):
        loss, _ = linear_logprob.linear_cross_entropy(
            hidden,
            head,
            targets,
            weights,
            softcap=softcap,
            label_smoothing=smoothing,
            z_loss=z_loss,
            chunk_size=8,
            precision="exact",
        )
        return 3.0 * loss

    def naive(hidden, head, weights):
        return 3.0 * naive_cross_entropy(hidden, head, targets, weights, softcap, smoothing, z_loss)

    argnums = (0, 1, 2)
    value, grads = jax.jit(jax.value_and_grad(ours, argnums))(hidden, head, weights)
    expected, expected_grads = jax.value_and_grad(naive, argnums)(hidden, head, weights)
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    assert_trees_close(grads, expected_grads, atol=2e-5)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_both_ways_to_form_gradients_agree(inputs, softcap):
    """A frozen head takes the gradients formed on the way forward, a trained one computes again."""
    hidden, head, targets, weights = inputs

    def loss(head_needs_grad):
        return jax.value_and_grad(
            lambda hidden, weights: linear_logprob.linear_cross_entropy(
                hidden,
                head,
                targets,
                weights,
                softcap=softcap,
                head_needs_grad=head_needs_grad,
                chunk_size=8,
                precision="exact",
            )[0],
            (0, 1),
        )(hidden, weights)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), loss(True), loss(False)
    )


def test_a_vocabulary_that_divides_is_cut_without_padding(inputs, monkeypatch):
    monkeypatch.setattr(vocab_tiles, "CPU_BLOCK", 16)
    hidden, head, targets, _ = inputs
    head, targets = head[:96], targets % 96
    assert 96 % vocab_tiles.block_size(96) == 0

    def ours(hidden, head):
        return linear_logprob.linear_logprob(hidden, head, targets, precision="exact").logps.sum()

    def naive(hidden, head):
        return naive_logprob(hidden, head, targets)[0].sum()

    grads, expected = (jax.grad(f, (0, 1))(hidden, head) for f in (ours, naive))
    assert_trees_close(grads, expected, atol=5e-6)


@pytest.mark.parametrize(
    ("vocab_size", "expected"),
    [
        pytest.param(49_152, 2048, id="SmolLM2"),
        pytest.param(128_256, 768, id="Llama 3"),
        pytest.param(151_936, 1024, id="Qwen: no divisor, so the last block is padded"),
        pytest.param(300, 300, id="a small one is a single block"),
    ],
)
def test_blocks_divide_common_vocabularies(vocab_size, expected, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert vocab_tiles.block_size(vocab_size) == expected


def test_loss_without_gradients_equals_loss_with_them(inputs):
    hidden, head, targets, weights = inputs

    def loss(hidden):
        return linear_logprob.linear_cross_entropy(
            hidden, head, targets, weights, label_smoothing=0.1, z_loss=0.01, precision="exact"
        )[0]

    np.testing.assert_allclose(loss(hidden), jax.value_and_grad(loss)(hidden)[0], rtol=1e-6)


def test_returned_logps_of_cross_entropy_are_constants(inputs):
    hidden, head, targets, weights = inputs

    def value(hidden, head):
        return linear_logprob.linear_cross_entropy(
            hidden, head, targets, weights, precision="exact"
        )[1].sum()

    for grad in jax.grad(value, (0, 1))(hidden, head):
        np.testing.assert_array_equal(grad, 0.0)


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_a_frozen_head_changes_no_other_gradient(inputs, precision):
    hidden, head, targets, weights = inputs

    def losses(hidden, head, head_needs_grad):
        options = {"head_needs_grad": head_needs_grad, "chunk_size": 8, "precision": precision}
        logps = linear_logprob.linear_logprob(hidden, head, targets, **options).logps
        loss, _ = linear_logprob.linear_cross_entropy(hidden, head, targets, weights, **options)
        return loss - (weights * logps).sum()

    free = jax.grad(losses, (0, 1))(hidden, head, True)
    frozen = jax.grad(losses, (0, 1))(hidden, head, False)
    np.testing.assert_allclose(free[0], frozen[0], atol=1e-6)
    np.testing.assert_array_equal(frozen[1], 0.0)
    assert float(jnp.abs(free[1]).max()) > 0.1


@pytest.mark.parametrize("head_dtype", [jnp.float32, jnp.bfloat16])
def test_fast_mode_stays_within_bfloat16_error(inputs, head_dtype):
    hidden, head, targets, weights = inputs
    head = head.astype(head_dtype)

    def losses(hidden, head, precision):
        logps = linear_logprob.linear_logprob(
            hidden, head, targets, chunk_size=8, precision=precision
        ).logps
        loss, _ = linear_logprob.linear_cross_entropy(
            hidden, head, targets, weights, chunk_size=8, precision=precision
        )
        # Smooth in the log-probability: a sine would amplify its rounding, not ours.
        return loss + (weights * logps**2).sum()

    grad = jax.value_and_grad(losses, (0, 1))
    value, grads = grad(hidden, head, "fast")
    expected, expected_grads = grad(hidden, head, "exact")
    assert grads[1].dtype == head_dtype
    np.testing.assert_allclose(value, expected, rtol=5e-3)
    for ours, exact in zip(grads, expected_grads, strict=True):
        ours, exact = (np.asarray(x, np.float32) for x in (ours, exact))
        assert np.abs(ours - exact).max() < 0.01 * np.abs(exact).max()


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_tokens_of_weight_zero_have_exactly_no_gradient(inputs, precision):
    hidden, head, targets, weights = inputs

    def value(hidden, targets):
        loss, _ = linear_logprob.linear_cross_entropy(
            hidden, head, targets, weights, z_loss=0.1, label_smoothing=0.1, precision=precision
        )
        logps = linear_logprob.linear_logprob(hidden, head, targets, precision=precision).logps
        return loss - (weights * logps).sum()

    grad = jax.grad(value)(hidden, targets)
    np.testing.assert_array_equal(grad[5], 0.0)
    np.testing.assert_array_equal(grad, jax.grad(value)(hidden, targets.at[5].set(0)))


def test_a_traced_temperature_does_not_recompile(inputs):
    hidden, head, targets, _ = inputs
    traces = []

    @jax.jit
    def logps(temperature):
        traces.append(1)
        return linear_logprob.linear_logprob(
            hidden, head, targets, temperature=temperature, precision="exact"
        ).logps

    for temperature in (0.5, 2.0):
        expected, _ = naive_logprob(hidden, head, targets, temperature=temperature)
        np.testing.assert_allclose(logps(jnp.float32(temperature)), expected, atol=5e-6)
    assert len(traces) == 1


def test_huge_logits_stay_finite():
    hidden, head = jnp.array([[1e4]]), jnp.array([[1.0], [-1.0], [0.5]])

    def value(hidden):
        result = linear_logprob.linear_logprob(
            hidden, head, jnp.array([1]), with_entropy=True, precision="exact"
        )
        return result.logps[0] + result.entropy[0], result

    grad, result = jax.grad(value, has_aux=True)(hidden)
    assert result.logps[0] == -2e4
    assert result.entropy[0] == 0.0
    np.testing.assert_allclose(grad, [[-2.0]])  # d(z_1 - z_0) / dh


def test_no_tokens_give_a_zero_loss():
    loss, logps = linear_logprob.linear_cross_entropy(
        jnp.zeros((0, D)),
        jnp.ones(HEAD_SHAPE),
        jnp.zeros(0, jnp.int32),
        jnp.zeros(0),
        precision="exact",
    )
    assert loss == 0.0
    assert logps.shape == (0,)


def temp_bytes(function, *args):
    return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("fused", ["logprob", "cross_entropy"])
def test_memory_does_not_grow_with_tokens_times_vocabulary(fused, precision):
    tokens, width, vocab, chunk = 2048, 32, 32_768, 64

    def loss(hidden, head, targets, weights, head_needs_grad):
        options = {"head_needs_grad": head_needs_grad, "chunk_size": chunk, "precision": precision}
        if fused == "cross_entropy":
            return linear_logprob.linear_cross_entropy(hidden, head, targets, weights, **options)[0]
        logps = linear_logprob.linear_logprob(hidden, head, targets, **options).logps
        return -(weights * logps).sum()

    shapes = (
        jax.ShapeDtypeStruct((tokens, width), jnp.float32),
        jax.ShapeDtypeStruct((vocab, width), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
        jax.ShapeDtypeStruct((tokens,), jnp.float32),
    )
    chunk_bytes, head_bytes = 4 * chunk * vocab, 4 * vocab * width
    both = temp_bytes(jax.grad(lambda *a: loss(*a, True), (0, 1)), *shapes)
    frozen = temp_bytes(jax.grad(lambda *a: loss(*a, False)), *shapes)
    assert both < 4 * chunk_bytes + 4 * head_bytes < 4 * tokens * vocab / 4
    assert frozen < 4 * chunk_bytes + 1.5 * head_bytes
    if fused == "logprob":
        # The accumulator may live in the output's own buffer, so outputs count too. The two
        # gradients of a cross entropy are formed in different ways: their bounds above must do.
        both_and_outputs = both + 4 * tokens * width + head_bytes
        assert frozen + 4 * tokens * width <= both_and_outputs - head_bytes


def test_a_frozen_head_costs_no_product():
    hidden, head = jnp.ones((64, 128)), jnp.ones((512, 128))
    targets, weights = jnp.zeros(64, jnp.int32), jnp.ones(64)

    def flops(head_needs_grad, argnums):
        value = lambda hidden, head: linear_logprob.linear_cross_entropy(  # noqa: E731
            hidden,
            head,
            targets,
            weights,
            head_needs_grad=head_needs_grad,
            chunk_size=64,
            precision="exact",
        )[0]
        compiled = jax.jit(jax.grad(value, argnums)).lower(hidden, head).compile()
        return compiled.cost_analysis()["flops"]

    product = 2 * 64 * 128 * 512
    assert flops(True, (0, 1)) > 3 * product
    assert flops(False, 0) < 2.5 * product
