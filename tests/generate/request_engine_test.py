"""Requests come and go at any time; what each gets is a matter of itself alone."""

import collections
import threading

import jax
import numpy as np
import pytest

from tests.generate import engine_test
from tunix.generate import completion, engine, requests, sampling_params
from tunix.perf import compile_counter

VOCAB, CACHE = engine_test.VOCAB, 40
KEYS = [jax.random.key(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def model():
    return engine_test.build()


@pytest.fixture(scope="module")
def small(model):
    """Few slots, short blocks and little prefill at a time: everything interrupts everything."""
    return engine.Engine(
        model, max_slots=3, cache_size=CACHE, prefill_tokens=32, steps_per_dispatch=3
    )


@pytest.fixture(scope="module")
def wide(model):
    return engine.Engine(model, max_slots=9, cache_size=CACHE)


def random_request(rng):
    """Any prompt and settings; prompts come again, so that rows are shared and copied."""
    length = int(rng.choice([1, 2, 7, 15, 16, 17, 26]))
    prompt = np.random.default_rng([length, rng.integers(2)]).integers(0, VOCAB, length)
    params = sampling_params.SamplingParams(
        max_new_tokens=int(rng.integers(1, 10)),
        temperature=float(rng.choice([0.0, 0.7, 1.0, 1.6])),
        top_k=rng.choice([None, 1, 5, 200]),
        top_p=rng.choice([None, 0.3, 0.9]),
        min_p=rng.choice([None, 0.05]),
        repetition_penalty=float(rng.choice([1.0, 1.0, 1.4])),
        stop_token_ids=tuple(rng.choice(VOCAB, rng.integers(0, 4), replace=False).tolist()),
    )
    return requests.Request(
        token_ids=prompt.tolist(),
        params=params,
        key=KEYS[rng.integers(len(KEYS))],
        index=int(rng.integers(1000)),
        forbidden_tokens=tuple(rng.choice(VOCAB, rng.choice([0, 0, 30]), replace=False).tolist()),
    )


def alone(sampler, request):
    """What a request gets from an engine that has nothing else to do."""
    assert sampler.load == (0, 0, 0)
    return completion.join(list(sampler.stream(request)))


def assert_same(found, expected):
    np.testing.assert_array_equal(found.token_ids, expected.token_ids)
    np.testing.assert_allclose(found.logps, expected.logps, atol=1e-5)
    np.testing.assert_allclose(found.sampled_logps, expected.sampled_logps, atol=1e-5)
    assert found.finish_reason == expected.finish_reason


def run_mixed(sampler, wanted, rng, *, abort_rate):
    """Add requests in random order between steps and abort some; return what came, by request."""
    order = [int(i) for i in rng.permutation(len(wanted))]
    request_of, deltas, aborted = {}, collections.defaultdict(list), set()
    while order or any(sampler.load):
        for _ in range(min(len(order), rng.integers(0, 5))):
            i = order.pop()
            request_of[sampler.add(wanted[i])] = i
        for request_id, i in request_of.items():
            is_over = deltas[i] and deltas[i][-1].finish_reason is not None
            if not is_over and i not in aborted and rng.random() < abort_rate:
                assert sampler.abort(request_id)
                aborted.add(i)
        for delta in sampler.step():
            i = request_of[delta.request_id]
            assert i not in aborted
            deltas[i].append(delta)
    return {i: completion.join(deltas[i]) for i in request_of.values() if i not in aborted}


@pytest.mark.parametrize("seed", range(3))
def test_a_request_gets_the_same_whenever_it_comes_and_whatever_comes_with_it(small, wide, seed):
    rng = np.random.default_rng(seed)
    wanted = [random_request(rng) for _ in range(24)]
    expected = [alone(small, request) for request in wanted]
    for sampler, abort_rate in ((small, 0.0), (wide, 0.0), (small, 0.1), (wide, 0.1)):
        found = run_mixed(sampler, wanted, rng, abort_rate=abort_rate)
        assert abort_rate or len(found) == len(wanted)
        for i, one in found.items():
            assert_same(one, expected[i])


def test_requests_of_a_call_are_requests_of_its_key_with_their_place_as_index(small):
    prompts = engine_test.prompts_of(5, 18)
    params = sampling_params.SamplingParams(max_new_tokens=6, temperature=1.2)
    together = small.generate(prompts, params, key=KEYS[0], num_samples=2, forbidden_tokens=(3,))
    for i, one in enumerate(together):
        request = requests.Request(
            token_ids=prompts[i // 2], params=params, key=KEYS[0], index=i, forbidden_tokens=(3,)
        )
        assert_same(one, alone(small, request))


@pytest.mark.parametrize(
    "count", [300, pytest.param(10_000, marks=pytest.mark.slow)], ids=["some", "ten thousand"]
)
def test_nothing_is_left_of_requests_that_ended_or_were_aborted(small, count):
    rng = np.random.default_rng(count)
    with compile_counter.CompileCounter() as counter:
        small.warmup()
        before = counter.count
        pending = [random_request(rng) for _ in range(count)]
        ends, live = collections.Counter(), []
        while pending or any(small.load):
            batch, pending = pending[:7], pending[7:]
            live += [small.add(request) for request in batch]
            if live and rng.random() < 0.5:
                ends["aborted"] += small.abort(live[rng.integers(len(live))])
            for delta in small.step():
                if delta.finish_reason is not None:
                    ends[delta.finish_reason] += 1
                    live.remove(delta.request_id)
        assert counter.count == before
    assert ends.total() == count
    assert min(ends.values()) > count / 50
    assert small.load == (0, 0, 0)
    assert small.step() == []


def test_a_thread_that_adds_while_another_steps_loses_nothing(small):
    rng = np.random.default_rng(5)
    wanted = [random_request(rng) for _ in range(40)]
    expected = [alone(small, request) for request in wanted]
    deltas, request_of, lock = collections.defaultdict(list), {}, threading.Lock()
    failures = []

    def add(mine):
        try:
            for i in mine:
                with lock:  # so that the id is known before a step returns it
                    request_of[small.add(wanted[i])] = i
        except BaseException as error:  # reported below, in the test's thread
            failures.append(error)

    adders = [threading.Thread(target=add, args=(range(k, 40, 4),)) for k in range(4)]
    for thread in adders:
        thread.start()
    while any(thread.is_alive() for thread in adders) or any(small.load):
        for delta in small.step():
            with lock:
                deltas[request_of[delta.request_id]].append(delta)
    assert not failures
    assert sorted(deltas) == list(range(40))
    for i, parts in deltas.items():
        assert_same(completion.join(parts), expected[i])


def test_threads_that_wait_for_their_own_requests_drive_the_engine_together(small):
    rng = np.random.default_rng(6)
    wanted = [random_request(rng) for _ in range(12)]
    expected = [alone(small, request) for request in wanted]
    prompts, params = engine_test.prompts_of(4, 20), engine_test.params()
    whole = small.generate(prompts, params, key=KEYS[1], num_samples=3)
    found: dict = {}

    def stream(i):
        found[i] = completion.join(list(small.stream(wanted[i])))

    def generate():
        found["call"] = small.generate(prompts, params, key=KEYS[1], num_samples=3)

    threads = [threading.Thread(target=stream, args=(i,)) for i in range(12)]
    threads.append(threading.Thread(target=generate))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(12):
        assert_same(found[i], expected[i])
    for one, other in zip(found["call"], whole, strict=True):
        assert_same(one, other)
    assert small.load == (0, 0, 0)


def greedy(length=5, new=9, **settings):
    return requests.Request(
        token_ids=engine_test.prompts_of(length)[0],
        params=engine_test.params(temperature=0.0, max_new_tokens=new, **settings),
        key=KEYS[0],
    )


def test_tokens_come_as_they_are_drawn_to_who_asked_for_them(small):
    expected = alone(small, greedy())
    received = []
    request_id = small.add(greedy(), received.append)
    sizes = []
    while small.load.waiting or small.load.running:
        assert small.step() == []  # they have gone where they were wanted
        sizes.append(sum(len(delta.token_ids) for delta in received))
    assert sizes == [3, 6, 9]
    assert {delta.request_id for delta in received} == {request_id}
    assert [delta.finish_reason for delta in received] == [None, None, "length"]
    assert_same(completion.join(received), expected)


def test_closing_a_stream_aborts_its_request(small):
    stream = small.stream(greedy())
    assert len(next(stream).token_ids) == 3
    assert small.load == (0, 1, 1)
    stream.close()
    assert small.load == (0, 0, 0)


def test_who_follows_an_aborted_request_hears_of_it(small):
    received = []
    request_id = small.add(greedy(), received.append)
    small.step()
    assert small.abort(request_id)
    assert not small.abort(request_id)
    assert received[-1].finish_reason == "aborted"
    assert len(received[-1].token_ids) == 0
    with pytest.raises(RuntimeError, match=f"request {request_id} has no completion: it was abort"):
        completion.join(received)


def test_a_step_that_fails_ends_what_was_in_slots_and_leaves_the_rest(small, monkeypatch):
    wanted = [greedy(length) for length in (3, 4, 5, 6)]
    expected = [alone(small, request) for request in wanted]
    received: dict = {i: [] for i in range(4)}
    for i, request in enumerate(wanted):
        small.add(request, received[i].append)

    def fail(*_):
        raise OSError("the device is gone")

    with monkeypatch.context() as patched:
        patched.setattr(small._scheduler, "record", fail)
        with pytest.raises(OSError, match="the device is gone"):
            small.step()
    assert [[delta.finish_reason for delta in received[i]] for i in range(4)] == [
        *[["aborted"]] * 3,
        [],
    ]
    while any(small.load):
        small.step()
    assert_same(completion.join(received[3]), expected[3])
    assert_same(alone(small, wanted[0]), expected[0])


def test_a_receiver_that_raises_loses_nothing_of_the_others(small):
    expected = alone(small, greedy())

    def refuse(_):
        raise OSError("nobody listens")

    received = []
    small.add(greedy(4, 1), refuse)
    small.add(greedy(), received.append)
    with pytest.raises(OSError, match="nobody listens"):
        small.step()
    while any(small.load):
        small.step()
    assert_same(completion.join(received), expected)


def test_weights_are_not_replaced_under_a_request_that_has_begun(model):
    sampler = engine.Engine(model, max_slots=2, cache_size=24, steps_per_dispatch=3)
    other = engine_test.build(seed=1)
    before = alone(sampler, greedy())
    waiting = [sampler.add(greedy()) for _ in range(3)]
    sampler.step()
    with pytest.raises(RuntimeError, match="2 requests have begun with the weights"):
        sampler.sync(other)
    with pytest.raises(RuntimeError, match="2 requests have begun with the weights"):
        sampler.hold(sampler.weights)
    assert sampler.version == 0
    for request_id in waiting[:2]:
        sampler.abort(request_id)
    sampler.sync(other)  # the third has not begun, and is drawn with the new weights
    deltas = []
    while any(sampler.load):
        deltas += sampler.step()
    assert {delta.version for delta in deltas} == {1}
    assert not np.array_equal(completion.join(deltas).token_ids, before.token_ids)
    assert_same(completion.join(deltas), alone(sampler, greedy()))


def test_prompts_longer_than_a_call_of_prefill_are_filled_while_others_draw(model, monkeypatch):
    monkeypatch.setattr(engine, "PREFILLS_PER_STEP", 1)
    sampler = engine.Engine(
        model, max_slots=3, cache_size=90, prefill_tokens=16, steps_per_dispatch=2
    )
    long, short = greedy(70, 4), greedy(3, 8, repetition_penalty=1.3)
    penalised = greedy(70, 4, repetition_penalty=1.3)
    expected = [alone(sampler, request) for request in (long, short, penalised)]
    received: dict = {i: [] for i in range(3)}
    for i, request in enumerate((short, long, penalised)):
        sampler.add(request, received[i].append)
    first_tokens = {}
    for turn in range(100):
        sampler.step()
        for i, deltas in received.items():
            if deltas:
                first_tokens.setdefault(i, turn)
        if not any(sampler.load):
            break
    assert first_tokens[0] < first_tokens[1] - 2
    for i, j in enumerate((1, 0, 2)):
        assert_same(completion.join(received[i]), expected[j])


def test_a_bad_request_is_refused_when_it_is_added(small):
    with pytest.raises(requests.PromptError, match="prompt 0 is empty"):
        small.add(requests.Request(token_ids=[], params=engine_test.params(), key=KEYS[0]))
    with pytest.raises(ValueError, match="outside of the vocabulary"):
        small.add(
            requests.Request(
                token_ids=[1], params=engine_test.params(), key=KEYS[0], forbidden_tokens=(VOCAB,)
            )
        )
    assert small.load == (0, 0, 0)
