"""The examples run, here with a tiny model."""

import importlib.util

from tests.repo import source


def load(name):
    spec = importlib.util.spec_from_file_location(name, source.ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_sft_loop_learns(tiny_model, monkeypatch):
    example = load("sft_loop")
    monkeypatch.setattr(example, "LENGTH", 128)  # a byte is a token here
    losses = example.main(tiny_model, steps=8)
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.02


def test_the_grpo_loop_runs(tiny_model, monkeypatch):
    example = load("grpo_loop")
    monkeypatch.setattr(example, "NEW_TOKENS", 8)
    rewards = example.main(tiny_model, steps=2)
    assert len(rewards) == 2
    assert all(0.0 <= reward <= 1.0 for reward in rewards)


def test_the_reward_of_the_grpo_loop_prefers_brief_replies_that_end():
    brief = load("grpo_loop").brief
    assert brief(["p"] * 3, ["wet", "it is wet", "wet"], ["stop", "stop", "length"]) == [
        0.5,
        0.25,
        0.0,
    ]
