"""What a run has trained is exported, and transformers computes the same with it."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import transformers
import yaml
from flax import nnx

from tests.models import hf_llama
from tunix.cli import errors, export_main, main, sft_main
from tunix.cli.loading import trained_model
from tunix.models import automodel, lora
from tunix.models.peft import peft_adapter

MESSAGES = [{"role": "user", "content": "a?"}]
LORA = "model_config.lora_config={rank: 2, alpha: 4.0}"


@pytest.fixture(scope="module")
def base(tiny_model, tmp_path_factory):
    """Return the directory of the base model, which tests may move."""
    return shutil.copytree(tiny_model, tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """Return a function that trains for three steps and returns the run's directory."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [{"messages": [*MESSAGES, {"role": "assistant", "content": "b."}]}] * 6
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model_config": {"model_id": str(base), "precision": "exact"},
        "data_path": str(folder / "chat.jsonl"),
        "batch_size": 2,
        "max_target_length": 64,
        "optimizer_config": {"learning_rate": 0.05},
        "training_config": {
            "checkpointing_options": {"save_interval_steps": 1, "max_to_keep": 2},
        },
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(settings))

    def train(*overrides, name):
        arguments = [str(folder / "base.yaml"), f"run_dir={folder / name}", *overrides]
        assert sft_main.main(["tunix sft", *arguments]) == 0
        return folder / name

    return train


@pytest.fixture(scope="module")
def full_run(run):
    return run(name="full")


@pytest.fixture(scope="module")
def lora_run(run):
    return run(LORA, name="lora")


def export(*arguments):
    return main.main(["export", *map(str, arguments)])


def failure(capsys, *arguments):
    assert export(*arguments) == errors.USAGE_ERROR
    return capsys.readouterr().err


def trained(directory, step=None):
    """Return the model of a run, its adapters beside its weights."""
    return trained_model.load(trained_model.find(directory, step, None))[0]


def assert_same_function(model, folder):
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    ids = hf_llama.tokens(258)
    ours = np.asarray(model(jnp.asarray(ids, jnp.int32))[0])
    np.testing.assert_allclose(ours, hf_llama.logits_of(theirs.eval(), ids), atol=1e-4)


def test_a_run_that_trained_everything(full_run, base, tmp_path, capsys):
    assert export(full_run, tmp_path / "out", "--format", "hf") == 0
    shown = capsys.readouterr().out
    for part in (f"step 3 of {full_run}", "model.safetensors", f'from_pretrained("{tmp_path}/out'):
        assert part in shown
    model = trained(full_run)
    assert_same_function(model, tmp_path / "out")
    before = automodel.AutoModel.from_pretrained(str(base))[0].embed_tokens.w[...]
    assert np.abs(model.embed_tokens.w[...] - before).max() > 0.01
    card = (tmp_path / "out" / "README.md").read_text()
    assert "all parameters; step 3 of the run full" in card
    assert f"`{base}`" in card
    ours, theirs = (
        transformers.AutoTokenizer.from_pretrained(folder).apply_chat_template(
            MESSAGES, tokenize=False
        )
        for folder in (tmp_path / "out", base)
    )
    assert ours == theirs


def test_adapters_merged_into_their_base(lora_run, tmp_path):
    assert export(lora_run, tmp_path / "out", "--format", "merged") == 0
    model = trained(lora_run)
    assert lora.is_lora_enabled(model)
    assert_same_function(model, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "LoRA adapters of rank 2 and alpha 4; step 3 of the run lora" in card


def test_adapters_alone_go_back_onto_their_base(lora_run, base, tmp_path, capsys):
    assert export(lora_run, tmp_path / "out", "--format", "peft") == 0
    assert "PeftModel.from_pretrained" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    model, _ = automodel.AutoModel.from_pretrained(str(base), precision="exact")
    peft_adapter.load_adapter(model, tmp_path / "out")
    jax.tree.map(
        np.testing.assert_array_equal,
        nnx.state(model, nnx.LoRAParam),
        nnx.state(trained(lora_run), nnx.LoRAParam),
    )


def adapter_base(folder):
    return json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]


def test_an_adapter_names_its_base_so_that_it_is_found(run, base, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(base.parent)
    directory = run(LORA, f"model_config.model_id={base.name}", name="relative")
    assert export(directory, tmp_path / "place", "--format", "peft") == 0
    assert f"a place on this machine, {base}" in capsys.readouterr().out
    assert adapter_base(tmp_path / "place") == str(base)
    named = tmp_path / "named"
    assert export(directory, named, "--format", "peft", "--base-id", "owner/tiny") == 0
    assert "note:" not in capsys.readouterr().out
    assert adapter_base(named) == "owner/tiny"
    assert "base_model: owner/tiny" in (named / "README.md").read_text()


def test_a_base_in_a_package_is_named_by_its_place(capsys, tmp_path):
    assert export_main._findable("package:tiny", tmp_path / "base") == f"{tmp_path}/base"
    assert "--base-id" in capsys.readouterr().out
    assert export_main._findable("owner/tiny", tmp_path / "base") == "owner/tiny"
    assert capsys.readouterr().out == ""


@pytest.fixture
def diverged(monkeypatch):
    """Let the checkpoint of a run hold a weight that is none, of adapters or of the model."""
    restore = trained_model._restore

    def damaged(checkpoint, model):
        restore(checkpoint, model)
        kind = nnx.Param if checkpoint.options.lora_config is None else nnx.LoRAParam
        state = nnx.state(model, kind)
        _, leaf = nnx.to_flat_state(state)[0]
        leaf.set_raw_value(jnp.asarray(leaf[...]).at[(-1,) * leaf.ndim].set(jnp.nan))
        nnx.update(model, state)

    monkeypatch.setattr(trained_model, "_restore", damaged)


@pytest.mark.parametrize("form", ["hf", "merged", "peft"])
def test_weights_that_are_no_numbers_are_exported_only_if_asked_for(
    form, full_run, lora_run, diverged, tmp_path, capsys
):
    directory = full_run if form == "hf" else lora_run
    message = failure(capsys, directory, tmp_path / "out", "--format", form)
    assert "tensors hold NaN or infinite numbers" in message
    assert "--allow-non-finite" in message
    assert list(tmp_path.iterdir()) == []
    asked = ("--format", form, "--allow-non-finite")
    assert export(directory, tmp_path / "out", *asked) == 0
    (path,) = (tmp_path / "out").glob("*.safetensors")
    assert any(np.isnan(x).any() for x in safetensors.numpy.load_file(path).values())


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_run_whose_weights_are_no_numbers_writes_no_text(
    kind, full_run, lora_run, diverged, capsys
):
    directory = full_run if kind == "full" else lora_run
    assert main.main(["generate", str(directory), "--prompt", "a"]) == errors.USAGE_ERROR
    message = capsys.readouterr().err
    assert f"step 3 of {directory} cannot be used" in message
    assert "holds NaN or infinite numbers" in message
    assert "take a checkpoint from before it failed" in message


@pytest.mark.parametrize("form", ["option", "directory"])
def test_an_earlier_checkpoint(form, full_run, tmp_path):
    where = [full_run / "checkpoints" / "2"] if form == "directory" else [full_run, "--step", "2"]
    out = tmp_path / "out"
    assert export(where[0], out, *where[1:], "--format", "hf", "--dtype", "bfloat16") == 0
    again = automodel.AutoModel.from_pretrained(str(out))[0].embed_tokens.w[...]
    expected = trained(full_run, 2).embed_tokens.w[...].astype(jnp.bfloat16)
    np.testing.assert_array_equal(again, expected)
    assert (out / "model.safetensors").stat().st_size < 20_000


def test_the_checkpoints_directory_stands_for_its_run(full_run):
    found = trained_model.find(full_run / "checkpoints", None, None)
    assert (found.run, found.step) == (full_run, 3)


def test_another_tokenizer_than_the_models_is_the_one_that_is_written(run, base, tmp_path):
    other = shutil.copytree(base, tmp_path / "other")
    settings = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 77}))
    directory = run(f"tokenizer_config.tokenizer_path={other}", name="tokenizer")
    assert export(directory, tmp_path / "out", "--format", "hf") == 0
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written["model_max_length"] == 77


def test_a_base_that_has_moved_is_found_where_the_user_says(lora_run, base, tmp_path, capsys):
    moved = base.rename(base.with_name("moved"))
    try:
        message = failure(capsys, lora_run, tmp_path / "out", "--format", "merged")
        assert f"base model of {lora_run} cannot be found" in message
        assert "say where it is with --model" in message
        arguments = (lora_run, tmp_path / "out", "--format", "merged", "--model", moved)
        assert export(*arguments) == 0
    finally:
        moved.rename(base)
    assert_same_function(trained(lora_run), tmp_path / "out")


def test_a_format_that_does_not_fit_names_the_one_that_does(full_run, lora_run, tmp_path, capsys):
    assert "--format merged" in failure(capsys, lora_run, tmp_path / "out", "--format", "hf")
    for form in ("merged", "peft"):
        assert "--format hf" in failure(capsys, full_run, tmp_path / "out", "--format", form)
    assert not (tmp_path / "out").exists()


def test_a_base_of_another_shape_is_refused(full_run, base, tmp_path, capsys):
    other = shutil.copytree(base, tmp_path / "other")
    raw = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(raw | {"intermediate_size": 48}))
    message = failure(capsys, full_run, tmp_path / "out", "--format", "hf", "--model", other)
    assert "does not fit the model" in message
    assert "up_proj" in message


def test_what_is_no_run_says_what_was_expected(tmp_path, capsys):
    message = failure(capsys, tmp_path / "nowhere", tmp_path / "out", "--format", "hf")
    assert "no run; expected a directory that tunix sft, dpo, reward, grpo or ppo wrote" in message


def test_a_run_without_checkpoints_says_when_there_will_be_one(full_run, tmp_path, capsys):
    shutil.copy(full_run / "config.yaml", tmp_path)
    (tmp_path / "checkpoints").mkdir()
    message = failure(capsys, tmp_path, tmp_path / "out", "--format", "hf")
    assert "no complete checkpoint" in message
    assert "save_interval_steps" in message


def test_a_step_that_was_not_kept_lists_those_that_were(full_run, tmp_path, capsys):
    arguments = (full_run, tmp_path / "out", "--format", "hf")
    assert "no checkpoint of step 1; there are [2, 3]" in failure(capsys, *arguments, "--step", 1)
    step = full_run / "checkpoints" / "2"
    assert "different steps" in failure(capsys, step, *arguments[1:], "--step", 3)


def test_a_target_that_is_not_empty_is_left_alone(full_run, tmp_path, capsys):
    (tmp_path / "mine").write_text("")
    assert "not an empty directory" in failure(capsys, full_run, tmp_path, "--format", "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
