"""Continuous batching: whatever shares the slots, every request gets its own result."""

import jax
import numpy as np
import pytest
from flax import nnx

from tunix.generate import engine, requests, sampling_params, scheduler, weight_sync
from tunix.models import lora
from tunix.models.transformer import config as config_lib
from tunix.models.transformer import decoder as decoder_lib
from tunix.perf import compile_counter

VOCAB = 53
CONFIG = config_lib.TransformerConfig(
    num_layers=2,
    vocab_size=VOCAB,
    embed_dim=16,
    hidden_dim=24,
    num_heads=4,
    head_dim=8,
    num_kv_heads=2,
    rope_theta=1e4,
    norm_eps=1e-5,
    weight_tying=True,
    precision="exact",
)
KEY = jax.random.key(7)


def build(seed=0):
    model = decoder_lib.Decoder(CONFIG, rngs=nnx.Rngs(seed))
    # Larger weights, so that distributions are not flat and argmax is not a coin toss.
    nnx.update(model, jax.tree.map(lambda x: 3 * x, nnx.state(model)))
    return model


def prompts_of(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, n).tolist() for n in lengths]


def params(**settings):
    return sampling_params.SamplingParams(**{"max_new_tokens": 6, **settings})


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def small(model):
    """Few slots and short blocks, so that slots are refilled in the middle."""
    return engine.Engine(model, max_slots=3, cache_size=40, steps_per_dispatch=4)


@jax.jit
def forward(model, tokens):
    return model(tokens)[0]


def logits_of(model, ids):
    """Logits of one row; causality hides the padding that saves a compilation per length."""
    padded = np.zeros((1, 48), np.int32)
    padded[0, : len(ids)] = ids
    return forward(model, padded)[0, : len(ids)]


def logps_by_forward(model, prompt, completion, temperature):
    logits = logits_of(model, [*prompt, *completion.token_ids.tolist()])
    rows = logits[len(prompt) - 1 : -1] / temperature
    return jax.nn.log_softmax(rows)[np.arange(len(completion.token_ids)), completion.token_ids]


def test_greedy_decoding_is_the_argmax_of_full_forwards(model, small):
    prompts = prompts_of(3, 17, 1, 9, 20)
    completions = small.generate(prompts, params(temperature=0.0), key=KEY)
    for prompt, one in zip(prompts, completions, strict=True):
        logits = logits_of(model, [*prompt, *one.token_ids.tolist()])
        np.testing.assert_array_equal(one.token_ids, logits[len(prompt) - 1 : -1].argmax(-1))
        np.testing.assert_array_equal(one.sampled_logps, 0.0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_equal_a_recomputation_by_the_model(model, small, temperature):
    prompts = prompts_of(4, 18, 2, 11)
    settings = params(temperature=temperature, stop_token_ids=(3, 11, 29), max_new_tokens=12)
    completions = small.generate(prompts, settings, key=KEY, num_samples=3)
    for i, one in enumerate(completions):
        expected = logps_by_forward(model, prompts[i // 3], one, temperature)
        np.testing.assert_allclose(one.logps, expected, atol=1e-5)
        np.testing.assert_allclose(one.sampled_logps, expected, atol=1e-5)


def test_a_result_does_not_depend_on_slots_or_on_what_else_runs(model, small):
    prompts = prompts_of(5, 19, 3, 8, 14, 2, 7)
    wide = engine.Engine(model, max_slots=16, cache_size=40)
    settings = params(temperature=1.3, max_new_tokens=9, stop_token_ids=(5, 6))
    narrow, broad = (e.generate(prompts, settings, key=KEY) for e in (small, wide))
    for a, b in zip(narrow, broad, strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
        np.testing.assert_allclose(a.logps, b.logps, atol=1e-5)
        assert a.finish_reason == b.finish_reason


def test_a_group_that_shares_its_prefill_draws_what_copies_of_the_prompt_draw(small):
    prompts = prompts_of(6, 21)
    settings = params(temperature=1.0)
    shared = small.generate(prompts, settings, key=KEY, num_samples=4)
    copies = small.generate([p for p in prompts for _ in range(4)], settings, key=KEY)
    for a, b in zip(shared, copies, strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
    assert len({tuple(one.token_ids) for one in shared[:4]}) > 1


def test_requests_stop_at_their_own_tokens_and_lengths(small):
    prompt = prompts_of(5)[0]
    free = small.generate([prompt], params(temperature=0.0, max_new_tokens=9), key=KEY)[0].token_ids
    stop = int(free[2])
    settings = [
        params(temperature=0.0, max_new_tokens=9, stop_token_ids=(stop, 1)),
        params(temperature=0.0, max_new_tokens=2),
        params(temperature=0.0, max_new_tokens=1),
    ]
    stopped, short, single = small.generate([prompt] * 3, settings, key=KEY)
    end = free.tolist().index(stop)
    np.testing.assert_array_equal(stopped.token_ids, free[: end + 1])
    assert stopped.finish_reason == "stop"
    np.testing.assert_array_equal(short.token_ids, free[:2])
    assert short.finish_reason == single.finish_reason == "length"
    assert len(single.token_ids) == 1


def test_truncated_draws_stay_in_the_kept_set_and_say_how_likely_they_were(model, small):
    prompt = prompts_of(6)[0]
    settings = params(temperature=1.0, top_k=3, max_new_tokens=1)
    probabilities = jax.nn.softmax(logits_of(model, prompt)[-1])
    kept = np.argsort(-probabilities)[:3]
    for one in small.generate([prompt], settings, key=KEY, num_samples=12):
        token = int(one.token_ids[0])
        assert token in kept
        expected = np.log(probabilities[token] / probabilities[kept].sum())
        np.testing.assert_allclose(one.sampled_logps[0], expected, atol=1e-5)
        np.testing.assert_allclose(one.logps[0], np.log(probabilities[token]), atol=1e-5)


def test_a_repetition_penalty_counts_prompt_and_reply(small):
    prompt = prompts_of(4)[0]
    settings = params(temperature=0.0, repetition_penalty=1e4, max_new_tokens=8)
    one = small.generate([prompt], settings, key=KEY)[0]
    positive_repeats = set(prompt) & set(one.token_ids.tolist())
    assert len(set(one.token_ids.tolist())) == len(one.token_ids)
    assert not positive_repeats


def test_nothing_compiles_after_the_first_call(model):
    warm = engine.Engine(model, max_slots=4, cache_size=48)
    warm.generate(prompts_of(3), params(), key=KEY)
    settings = [
        params(temperature=0.0),
        params(temperature=0.8, top_k=5),
        params(temperature=1.2, top_p=0.7, max_new_tokens=11),
        params(min_p=0.1, stop_token_ids=(1, 2, 3)),
        params(repetition_penalty=1.3, max_new_tokens=1),
    ]
    with compile_counter.CompileCounter() as counter:
        for seed in range(3):
            lengths = np.random.default_rng(seed).integers(1, 37, 5)
            prompts = prompts_of(*lengths, seed=seed)
            warm.generate(prompts, settings, key=jax.random.key(seed), num_samples=seed + 1)
        warm.generate(prompts_of(30), params(), key=KEY, forbidden_tokens=(4, 5))
        warm.sync(build(seed=2))
        warm.generate(prompts_of(2, 3), params(), key=KEY)
    assert counter.count == 0


def test_new_weights_are_used_from_the_next_call_on(model):
    ours = engine.Engine(model, max_slots=2, cache_size=24)
    other = build(seed=1)
    prompts = prompts_of(4, 9)
    before = ours.generate(prompts, params(temperature=0.0), key=KEY)
    ours.sync(other)
    assert ours.version == 1
    after = ours.generate(prompts, params(temperature=0.0), key=KEY)
    fresh = engine.Engine(other, max_slots=2, cache_size=24)
    expected = fresh.generate(prompts, params(temperature=0.0), key=KEY)
    for a, b, c in zip(before, after, expected, strict=True):
        np.testing.assert_array_equal(b.token_ids, c.token_ids)
        assert not np.array_equal(a.token_ids, b.token_ids)


def test_adapters_are_part_of_the_sampled_policy():
    adapted = build()
    lora.apply_lora(adapted, lora.LoraConfig(rank=2, alpha=4.0), rngs=nnx.Rngs(0))
    for _, module in lora.iter_projections(adapted):
        module.lora_b[...] = 0.3 * jax.random.normal(KEY, module.lora_b.shape)
    ours = engine.Engine(adapted, max_slots=2, cache_size=24)
    prompts = prompts_of(4, 9)
    for prompt, one in zip(prompts, ours.generate(prompts, params(), key=KEY), strict=True):
        expected = logps_by_forward(adapted, prompt, one, 1.0)
        np.testing.assert_allclose(one.logps, expected, atol=1e-5)


def test_every_bad_prompt_is_named_before_anything_runs(small):
    with pytest.raises(requests.PromptError) as error:
        small.generate([[], [1] * 40, [1, VOCAB], [2]], params(), key=KEY)
    message = str(error.value)
    assert "prompt 0 is empty" in message
    assert "prompt 1 has 40 tokens" in message
    assert "shorten it to 34 tokens or raise cache_size to 46" in message
    assert (
        f"prompt 2 has token ids [{VOCAB}], and the model has embeddings of 0 to {VOCAB - 1} only"
        in message
    )
    assert len(error.value.problems) == 3


def test_weights_of_another_shape_are_refused(small):
    wider = config_lib.TransformerConfig(**{**vars(CONFIG), "hidden_dim": 32})
    with pytest.raises(weight_sync.WeightMismatchError, match=r"up_proj\.w has shape"):
        small.sync(decoder_lib.Decoder(wider, rngs=nnx.Rngs(0)))


def test_a_call_that_failed_leaves_the_engine_usable(small):
    with pytest.raises(requests.PromptError):
        small.generate([[]], params(), key=KEY)
    assert len(small.generate(prompts_of(3), params(), key=KEY)) == 1


def test_an_interrupted_call_leaves_the_engine_usable(small, monkeypatch):
    prompts = prompts_of(3, 8, 5, 2)
    expected = small.generate(prompts, params(), key=KEY)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(scheduler.Scheduler, "record", interrupt)
        with pytest.raises(KeyboardInterrupt):
            small.generate(prompts, params(), key=KEY)
    again = small.generate(prompts, params(), key=KEY)
    for a, b in zip(expected, again, strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)


def test_stop_tokens_of_a_later_call_are_obeyed(small):
    prompt = prompts_of(5)[0]
    greedy = {"temperature": 0.0, "max_new_tokens": 9}
    tokens = small.generate([prompt], params(**greedy), key=KEY)[0].token_ids.tolist()
    for stop in dict.fromkeys(tokens):
        one = small.generate([prompt], params(**greedy, stop_token_ids=(stop,)), key=KEY)[0]
        assert one.token_ids.tolist() == tokens[: tokens.index(stop) + 1]
        assert one.finish_reason == "stop"


def test_samples_of_a_group_follow_the_policy_independently(model, small):
    prompt, n = prompts_of(7)[0], 3000
    probabilities = np.asarray(jax.nn.softmax(logits_of(model, prompt)[-1]))
    drawn = small.generate([prompt], params(max_new_tokens=1), key=KEY, num_samples=n)
    counts = np.bincount([one.token_ids[0] for one in drawn], minlength=VOCAB)
    assert (np.abs(counts / n - probabilities) <= 4.5 * np.sqrt(probabilities / n)).all()


def test_no_prompts_give_no_completions(small):
    assert small.generate([], params(), key=KEY) == []


def test_sizes_below_one_are_refused(model, small):
    with pytest.raises(ValueError, match="at least 1: cache_size=0, prefill_tokens=-1"):
        engine.Engine(model, cache_size=0, prefill_tokens=-1)
    with pytest.raises(ValueError, match="at least 1: num_samples=0"):
        small.generate(prompts_of(3), params(), key=KEY, num_samples=0)


@pytest.mark.parametrize("cache_size", [10**9, 2**31 - 1])
def test_a_cache_that_no_memory_holds_is_refused_before_it_is_allocated(model, cache_size):
    with pytest.raises(ValueError, match=rf"up to {cache_size:,} tokens .* holds .* GB"):
        engine.Engine(model, cache_size=cache_size)
