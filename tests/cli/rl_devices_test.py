"""``tunix grpo`` and ``tunix ppo`` on several devices: the run of one device, on any layout."""

import numpy as np
import pytest

from tests import virtual_devices
from tests.cli import grpo_main_test
from tunix.utils import json_lines

ACTOR = "actor: {shape: [2, 2], axis_names: [fsdp, tp]}"
OTHERS = (
    "rollout: {shape: [2], axis_names: [tp], first_device: 4}, "
    "reference: {shape: [1], axis_names: [fsdp], first_device: 6}"
)
CRITIC = "critic: {shape: [1], axis_names: [tp], first_device: 7}"
ADAPTERS = "model_config.lora_config={rank: 4, alpha: 8.0}"
NUMBERS = ("reward", "kl", "grad_norm", "critic/loss", "critic/grad_norm")


def job(folder, model, command):
    # Not Adam: its first steps are the signs of gradients.
    training = {"actor_optimizer_config": {"opt_type": "sgd", "learning_rate": 0.3}}
    if command == "ppo":
        training["critic_optimizer_config"] = {"opt_type": "sgd", "learning_rate": 0.1}
    algorithm = {f"{command}_config": {"num_generations": 4, "beta": 0.05}}
    return grpo_main_test.write_job(
        folder, model, batch_size=4, rl_training_config=training, **algorithm
    )


def log(directory):
    rows = json_lines.read(directory / "metrics.jsonl")
    return [[row.get(f"train/{name}", 0.0) for name in NUMBERS] for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("grpo", ()),
        ("ppo", ()),
        ("ppo", (ADAPTERS,)),
        ("grpo", ("grpo_config.off_policy_steps=1",)),
    ],
    ids=["grpo", "ppo", "ppo, adapters", "grpo, one ahead"],
)
def test_a_run_that_moves_between_layouts_has_the_log_of_one_that_stays(
    tmp_path, tiny_model, command, settings
):
    base = job(tmp_path, tiny_model, command)

    def run(name, steps, devices, *meshes):
        return virtual_devices.run(
            "tests.cli.rl_devices_run",
            command,
            base,
            f"run_dir={tmp_path / name}",
            f"rl_training_config.max_steps={steps}",
            *settings,
            *meshes,
            devices=devices,
        )

    apart = ", ".join((ACTOR, OTHERS, *([CRITIC] if command == "ppo" else [])))
    said = run("moves", 1, 8, f"role_to_mesh={{{apart}}}")
    critic = "; critic: 7 (tp 1)" if command == "ppo" else ""
    places = f"actor: 0-3 (fsdp 2 x tp 2){critic}; reference: 6 (fsdp 1); rollout: 4-5 (tp 2)"
    assert f"devices    {places}" in said
    run("moves", 2, 8, "model_config.mesh={shape: [8], axis_names: [fsdp]}")
    run("moves", 3, 4, f"role_to_mesh={{{ACTOR}}}")
    said = run("moves", 4, 1)
    assert "continuing from step 3" in said
    assert not any(line.startswith("devices") for line in said)

    said = run("stays", 4, 2)
    assert any(line.startswith("devices    1 of 2; role_to_mesh or") for line in said)
    moved, stayed = (tmp_path / name for name in ("moves", "stays"))
    np.testing.assert_allclose(log(moved), log(stayed), rtol=1e-5, atol=1e-6)
    told = [json_lines.read(one / "completions.jsonl") for one in (moved, stayed)]
    for found, expected in zip(*told, strict=True):
        for name in ("step", "prompt", "completion", "policy_version"):
            assert found[name] == expected[name]
