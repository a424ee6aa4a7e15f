import json

import pytest
import yaml

from tunix.cli import errors, peft_main, report_main, sft_main
from tunix.utils import config


@pytest.fixture
def job(tmp_path, tiny_model):
    """Return a function that runs a small job and returns its directory."""
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in [("a?", "b."), ("c?", "d."), ("e?", "f."), ("g?", "h.")]
    ]
    data = tmp_path / "chat.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = tmp_path / "base.yaml"
    settings = {
        "model_config": {"model_id": tiny_model, "precision": "exact"},
        "data_path": str(data),
        "batch_size": 2,
        "max_target_length": 64,
        "train_fraction": 0.5,
        "num_train_epochs": 4,
        "optimizer_config": {"learning_rate": 0.01},
        "training_config": {"eval_every_n_steps": 2},
    }
    base.write_text(yaml.safe_dump(settings))

    def run(*overrides, name="run", main=sft_main.main):
        directory = tmp_path / name
        code = main(["tunix sft", str(base), f"run_dir={directory}", *overrides])
        assert code == 0
        return directory

    return run


def losses(directory, name="train/loss"):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [row[name] for row in map(json.loads, lines) if name in row]


def test_a_run_leaves_its_whole_story_in_its_directory(job):
    directory = job()
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["eval_after"]["loss"] < summary["eval_before"]["loss"]
    assert len(losses(directory)) == 4
    assert len(losses(directory, "eval/loss")) == 2
    assert list((directory / "tensorboard").iterdir())
    assert yaml.safe_load((directory / "config.yaml").read_text())["batch_size"] == 2


def test_the_saved_config_runs_the_same_job_again(job, tmp_path):
    first = job(name="first")
    second = tmp_path / "second"
    sft_main.main(["tunix sft", str(first / "config.yaml"), f"run_dir={second}"])
    assert losses(first) == losses(second)


def test_a_run_that_is_started_again_continues(job):
    whole = job(name="whole")
    part = job("training_config.max_steps=2", name="part")
    assert len(losses(part)) == 2
    job(name="part")
    assert losses(part) == losses(whole)


def test_a_run_that_ended_before_its_summary_gets_it_when_started_again(job, capsys):
    summary = job() / "summary.json"
    written = summary.read_bytes()
    for before in (None, '{"steps": 2}', "{"):
        summary.unlink() if before is None else summary.write_text(before)
        job()
        assert summary.read_bytes() == written
    assert "already finished" not in capsys.readouterr().out


def test_a_run_that_stopped_early_or_ran_out_of_data_is_finished_too(job, capsys):
    early = ["training_config.eval_every_n_steps=1", "num_train_epochs=9"]
    early.append("training_config.early_stopping={patience: 1, min_delta: 1000.0}")
    for name, overrides, expected in (
        ("early", early, "note       stopped early: loss"),
        ("data", ["training_config.max_steps=9"], "before max_steps 9"),
    ):
        directory = job(*overrides, name=name)
        steps = json.loads((directory / "summary.json").read_text())["steps"]
        (directory / "summary.json").write_text(json.dumps({"steps": steps}))
        capsys.readouterr()
        job(*overrides, name=name)
        out = capsys.readouterr().out
        assert expected in out and "continuing" not in out
        planned = 9 if name == "early" else steps
        assert f"already finished ({steps} of {planned} steps); nothing was trained" in out
        assert json.loads((directory / "summary.json").read_text()) == {"steps": steps}


def test_adapters_train_while_the_base_stays(job):
    directory = job(
        "model_config.lora_config={rank: 2, alpha: 4.0}", "optimizer_config.learning_rate=0.05"
    )
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["eval_after"]["loss"] < summary["eval_before"]["loss"]


def test_adapters_train_on_a_quantised_base(job):
    settings = {"rank": 2, "alpha": 4, "weight_qtype": "nf4", "tile_size": 16, "dropout": 0.1}
    settings |= {"module_path": ".*q_einsum|.*kv_einsum|.*down_proj", "use_rslora": True}
    overrides = (f"model_config.lora_config.{key}={value}" for key, value in settings.items())
    directory = job(*overrides)
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["eval_after"]["loss"] < summary["eval_before"]["loss"]


def test_a_tile_size_that_nothing_reads_is_an_error(job):
    with pytest.raises(config.ConfigError, match="tile_size goes with weight_qtype"):
        job("model_config.lora_config={rank: 2, alpha: 4, tile_size: 16}")


def test_peft_main_is_the_same_command(job):
    assert (job(main=peft_main.main) / "summary.json").exists()


def test_print_config_shows_every_setting_and_runs_nothing(job, tmp_path, capsys):
    code = sft_main.main(
        ["tunix sft", str(tmp_path / "base.yaml"), "--print-config", "seed=7", "run_dir=nowhere"]
    )
    printed = yaml.safe_load(capsys.readouterr().out)
    assert code == 0
    assert (printed["seed"], printed["data_config"]["packing"]) == (7, False)
    assert not (tmp_path / "nowhere").exists()


def test_all_mistakes_in_the_settings_come_in_one_message(job):
    with pytest.raises(config.ConfigError) as caught:
        job(
            "training_config.max_stpes=3",
            "batch_size=two",
            "data_source=tfds",
            "optimizer_config.b1=2",
            "training_config.checkpoint_root_directory=x",
        )
    assert sorted(caught.value.problems) == [
        "batch_size must be a whole number, got 'two'",
        "data_source: known key of google-tunix, not supported here: "
        "data_path says where data is read from: a file, a pattern, hub:OWNER/NAME",
        "optimizer_config: b1 must lie in [0, 1), got 2.0",
        "training_config.checkpoint_root_directory: known key of google-tunix, not supported "
        "here: everything a run writes goes below run_dir; remove it",
        "unknown key 'training_config.max_stpes' (did you mean 'max_steps'?)",
    ]


def message_of(capsys, *arguments):
    """Return what a user sees when the command fails."""
    assert errors.run(sft_main.main, ["tunix sft", *arguments]) == errors.USAGE_ERROR
    return capsys.readouterr().err


def test_a_missing_model_is_one_message_without_traceback(job, tmp_path, capsys):
    text = message_of(
        capsys,
        str(tmp_path / "base.yaml"),
        f"model_config.model_id={tmp_path}/nothing",
        f"run_dir={tmp_path}/run",
    )
    assert text.startswith("error: ")
    assert f"{tmp_path}/nothing" in text
    assert "Traceback" not in text


def test_a_row_without_the_needed_column_is_named_by_file_and_line(job, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"txet": "b"}\n')
    text = message_of(
        capsys,
        str(tmp_path / "base.yaml"),
        f"data_path={tmp_path}/bad.jsonl",
        f"run_dir={tmp_path}/run",
    )
    assert "bad.jsonl:2" in text
    assert "'text'" in text


def test_an_unwritable_run_directory_says_what_to_do(job, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    text = message_of(capsys, str(tmp_path / "base.yaml"), f"run_dir={tmp_path}/file/run")
    assert "choose another one" in text or "Not a directory" in text


def test_a_mixture_with_every_extra_of_the_objective_and_the_loop(job, tmp_path):
    (tmp_path / "more.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 6)
    paths = f"data_path=[{tmp_path}/chat.jsonl,{tmp_path}/more.jsonl]"
    extras = [
        paths,
        "data_config.mixture={weights: [1, 2]}",
        "loss_config={label_smoothing: 0.1, z_loss: 0.001, neftune_alpha: 5}",
        "training_config.ema_decay=0.5",
        "training_config.early_stopping={patience: 1, mode: max}",
        "training_config.keep_best={metric: nll}",
        "training_config.checkpointing_options.save_interval_steps=2",
    ]
    summary = json.loads((job(*extras) / "summary.json").read_text())
    assert summary["steps"] == 4, "the loss falls, so that its maximum is the first"
    assert summary["best_step"] == 4, "and its minimum the last"
    losses = [summary[name]["loss"] for name in ("eval_before", "eval_of_average", "eval_after")]
    assert losses == sorted(losses, reverse=True)
    assert summary["eval_after"]["loss"] > summary["eval_after"]["nll"]


def test_data_can_be_streamed(job, tmp_path):
    directory = job(
        "train_fraction=1.0",
        f"eval_data_path={tmp_path}/chat.jsonl",
        "data_config={streaming_window: 3, packing: true}",
        "training_config.max_steps=3",
        "num_train_epochs=100",
    )
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["eval_after"]["loss"] < summary["eval_before"]["loss"]


def test_settings_that_contradict_each_other_are_named(job):
    with pytest.raises(config.ConfigError) as caught:
        job(
            "train_fraction=1.0",
            "data_config={mixture: {weights: [1, 2]}, streaming_window: 8}",
            "training_config.early_stopping={patience: 3}",
        )
    assert caught.value.problems == (
        "training_config.early_stopping goes by evaluations: set eval_data_path",
        "data_config.mixture has 2 weights for 1 entries of data_path; give one for each",
        "a stream does not know its length: set training_config.max_steps",
        "data_config.mixture cannot be streamed; remove it or streaming_window",
    )


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("optimizer_config.learning_rate=.nan", "learning_rate must be a finite number, got nan"),
        ("optimizer_config.weight_decay=-.inf", "weight_decay must be a finite number, got -inf"),
        ("optimizer_config.end_value=1e400", "end_value must be a finite number, got inf"),
        ("loss_config.z_loss=1e39", "z_loss must be a finite number in float32"),
        ("training_config.max_steps=1e10", "max_steps must be at most 2147483647"),
        ("train_fraction=.nan", "train_fraction must be a finite number, got nan"),
    ],
)
def test_numbers_of_settings_are_finite(job, override, problem):
    with pytest.raises(config.ConfigError, match=problem):
        job(override)


def test_a_run_that_diverges_fails_and_keeps_none_of_its_weights(job, tmp_path, capsys):
    settings = ("optimizer_config.learning_rate=1e38", "optimizer_config.opt_type=sgd")

    def main(argv):
        return errors.run(lambda line: 0 if job(*settings) else 1, argv)

    assert main(["tunix sft"]) == errors.USAGE_ERROR
    shown = capsys.readouterr()
    assert "not finite" in shown.err
    assert "finished" not in shown.out


def test_early_stopping_that_no_evaluation_reaches_is_an_error(job):
    for setting in ("early_stopping.patience=1", "keep_best.num=1"):
        with pytest.raises(config.ConfigError, match="eval_every_n_steps 9 is more than the 4"):
            job("training_config.eval_every_n_steps=9", f"training_config.{setting}")


def test_a_run_says_what_it_is_too_short_for(job, capsys):
    job("training_config.max_steps=50", "training_config.eval_every_n_steps=9")
    shown = capsys.readouterr()
    assert "note       the data ends after 4 steps, before max_steps 50" in shown.out
    assert "note       there is no evaluation while training" in shown.out
    assert "sft 4/4" in shown.err


def test_a_run_that_is_stopped_early_says_why(job, capsys):
    job("training_config.early_stopping={patience: 1, min_delta: 100.0}", "num_train_epochs=9")
    shown = capsys.readouterr().out
    assert "note       stopped early: loss of the evaluation did not improve 1 times" in shown
    assert "finished after step 4;" in shown


def test_a_stream_that_ends_before_max_steps_says_so(job, capsys):
    job(
        "data_config.streaming_window=4",
        "train_fraction=1.0",
        "num_train_epochs=1",
        "training_config.max_steps=50",
    )
    assert "note       the data ended after 2 of 50 steps" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["a share", "a file", "the same file"])
def test_training_and_held_out_rows_have_names_of_their_own(job, how, tmp_path, capsys):
    other = tmp_path / ("chat.jsonl" if how == "the same file" else "held_out.jsonl")
    other.write_text((tmp_path / "chat.jsonl").read_text())
    given = [] if how == "a share" else ["train_fraction=1.0", f"eval_data_path={other}"]
    job("training_config.max_steps=1", *given)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("data ")]
    held_out = other if given else tmp_path / "chat.jsonl"
    assert [line.split(":")[0].split(maxsplit=1)[1] for line in lines] == [
        str(tmp_path / "chat.jsonl"),
        f"{held_out} (held out)",
    ]


def test_the_report_shows_what_was_measured_on_held_out_rows(job):
    directory = job()
    page = report_main.make_page(directory, max_rows=10)
    summary = json.loads((directory / "summary.json").read_text())
    before, after = (summary[f"eval_{name}"]["loss"] for name in ("before", "after"))
    assert "<h2>Held-out data</h2>" in page
    assert f'<td>loss</td><td class="n" data-v="{before}">{before:.4g}</td>' in page
    assert f'data-v="{after}">{after:.4g}</td>' in page


def test_held_out_data_that_was_edited_between_two_starts_is_refused(job, tmp_path):
    held_out = tmp_path / "held_out.jsonl"
    text = (tmp_path / "chat.jsonl").read_text()
    held_out.write_text(text)
    settings = ("train_fraction=1.0", f"eval_data_path={held_out}", "num_train_epochs=2")
    job(*settings, "training_config.max_steps=2", name="part")
    held_out.write_text(text.replace("h.", "i."))
    with pytest.raises(ValueError, match="cannot resume the run on its held-out data"):
        job(*settings, name="part")
    held_out.write_text(text)
    job(*settings, name="part")


def test_training_data_that_was_edited_between_two_starts_is_refused(job, tmp_path):
    data = tmp_path / "chat.jsonl"
    job("training_config.max_steps=2", "num_train_epochs=2", name="part")
    data.write_text(data.read_text().replace("a?", "z?"))
    with pytest.raises(ValueError, match="the content of its rows has changed"):
        job("num_train_epochs=2", name="part")
