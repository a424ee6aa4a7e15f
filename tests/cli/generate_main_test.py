import io
import json

import numpy as np
import pytest
import safetensors.numpy

from tests import tiny_llama
from tunix.cli import errors, generate_main, main
from tunix.generate import sampling_params
from tunix.utils import config


def run(capsys, *arguments):
    assert generate_main.main(["tunix generate", *arguments]) == 0
    return capsys.readouterr()


def rows(capsys, *arguments):
    return [json.loads(line) for line in run(capsys, *arguments, "--json").out.splitlines()]


def test_several_prompts_and_samples_come_in_order(capsys, tiny_model):
    found = rows(
        capsys,
        *(tiny_model, "--prompt", "a", "--prompt", "bb", "--num-samples", "2"),
        *("--temperature", "1", "--max-new-tokens", "5", "--precision", "exact"),
    )
    assert [row["prompt"] for row in found] == ["a", "a", "bb", "bb"]
    assert found[0]["token_ids"] != found[1]["token_ids"]
    for row in found:
        assert len(row["token_ids"]) == len(row["logps"]) <= 5
        # An almost uniform model over 258 tokens.
        np.testing.assert_allclose(row["logps"], -np.log(258), atol=1.0)


@pytest.mark.slow
def test_the_seed_decides(capsys, tiny_model):
    line = (tiny_model, "--prompt", "a", "--temperature", "1", "--max-new-tokens", "8")
    assert rows(capsys, *line, "--seed", "1") == rows(capsys, *line, "--seed", "1")
    assert rows(capsys, *line, "--seed", "1") != rows(capsys, *line, "--seed", "2")


def test_raw_text_is_not_wrapped_in_a_conversation(capsys, tiny_model, monkeypatch):
    lengths = []

    class Spy(Exception):
        pass

    def spy(self, prompts, *args, **kwargs):
        lengths.append(len(prompts[0]))
        raise Spy

    monkeypatch.setattr(generate_main.engine.Engine, "generate", spy)
    for form in ("--raw", "--chat"):
        with pytest.raises(Spy):
            generate_main.main(["tunix generate", tiny_model, "--prompt", "abc", form])
    assert lengths[0] == 3
    assert lengths[1] > 3


def test_a_system_message_stands_before_every_prompt(tiny_model, capsys, monkeypatch):
    class Spy(Exception):
        pass

    def spy(self, prompts, *_, **settings):
        raise Spy([len(prompt) for prompt in prompts])

    monkeypatch.setattr(generate_main.engine.Engine, "generate", spy)
    line = ["tunix generate", tiny_model, "--prompt", "abc", "--prompt", "d"]
    with pytest.raises(Spy) as plain:
        generate_main.main(line)
    with pytest.raises(Spy) as with_system:
        generate_main.main([*line, "--system", "Be brief."])
    # "<|im_start|>", "system\n", the message, "<|im_end|>" and a line end, a byte each.
    more = 1 + len("system\n") + len("Be brief.") + 1 + 1
    assert with_system.value.args[0] == [length + more for length in plain.value.args[0]]
    with pytest.raises(config.ConfigError, match="--system is part of a conversation"):
        generate_main.main([*line, "--raw", "--system", "Be brief."])


@pytest.mark.parametrize("empty", ["", "  ", "\n"])
def test_an_empty_prompt_is_refused_before_a_model_is_read(empty):
    line = ["tunix generate", "no-such-model", "--prompt", "a", "--prompt", empty]
    with pytest.raises(config.ConfigError, match="--prompt is empty"):
        generate_main.main(line)


def test_the_help_tells_how_long_a_reply_is_by_default(capsys):
    with pytest.raises(SystemExit, match="0"):
        generate_main.main(["tunix generate", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "tokens after which a reply is cut (default: 128)" in shown


def prompts_asked(monkeypatch, *arguments, standard_input):
    """Return the texts that the command encodes, without running the model."""
    asked = []

    class Spy(Exception):
        pass

    def spy(tokenizer, text, as_chat, system):
        asked.append(text)
        return [1]

    def stop(*args):
        raise Spy

    monkeypatch.setattr(generate_main, "_encode", spy)
    monkeypatch.setattr(generate_main.build, "report_context", stop)
    monkeypatch.setattr("sys.stdin", standard_input)
    with pytest.raises(Spy):
        generate_main.main(["tunix generate", *arguments])
    return asked


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param("hello", ["hello"], id="one line without an end"),
        pytest.param("hello\n", ["hello"], id="one line"),
        pytest.param("a b\nc\n", ["a b", "c"], id="two lines"),
        pytest.param("a\r\nb\r\n", ["a", "b"], id="lines of Windows"),
        pytest.param("\ufeffa\nb", ["a", "b"], id="a byte order mark"),
        pytest.param("a\n\n  \nb\n\n", ["a", "b"], id="blank lines are no prompts"),
        pytest.param(" a \n", [" a "], id="spaces belong to the prompt"),
        pytest.param("a\x0cb\u2028c\n", ["a\x0cb\u2028c"], id="only line feeds end a line"),
    ],
)
def test_every_line_of_standard_input_is_a_prompt(given, expected, tiny_model, monkeypatch):
    found = prompts_asked(monkeypatch, tiny_model, standard_input=io.StringIO(given))
    assert found == expected


def test_blank_lines_that_are_left_out_are_counted(tiny_model, monkeypatch, capsys):
    prompts_asked(monkeypatch, tiny_model, standard_input=io.StringIO("a\n\n \nb\n"))
    assert "blank lines of standard input are no prompts: 2 left out" in capsys.readouterr().err
    prompts_asked(monkeypatch, tiny_model, standard_input=io.StringIO("a\nb\n"))
    assert "blank" not in capsys.readouterr().err


def test_a_prompt_of_several_lines_is_an_argument(tiny_model, monkeypatch):
    arguments = (tiny_model, "--prompt", "a\nb", "--prompt", "c")
    found = prompts_asked(monkeypatch, *arguments, standard_input=io.StringIO("not read"))
    assert found == ["a\nb", "c"]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        pytest.param(b"", "it holds no prompt; write one a line, or use --prompt", id="nothing"),
        pytest.param(b" \n\n", "it holds no prompt", id="blank lines only"),
        pytest.param(b"ab\xff", "byte 3 is not utf-8", id="other bytes than text"),
    ],
)
def test_standard_input_without_prompts_is_refused_before_the_model_is_read(
    given, problem, monkeypatch, capsys
):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
    assert main.main(["generate", "no/such/model"]) == errors.USAGE_ERROR
    assert f"invalid standard input:\n  - {problem}" in capsys.readouterr().err


def test_replies_to_lines_come_in_their_order(capsys, tiny_model, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nbye\n"))
    found = rows(capsys, tiny_model, "--max-new-tokens", "2")
    assert [row["prompt"] for row in found] == ["hello", "bye"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_of_no_numbers_writes_no_text(value, capsys, tmp_path):
    tiny_llama.write_model(tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"][3] = value
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    assert main.main(["generate", str(tmp_path), "--prompt", "a"]) == errors.USAGE_ERROR
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "model.norm.weight holds NaN or infinite numbers" in shown.err


def test_speed_goes_to_standard_error_and_text_to_standard_output(capsys, tiny_model):
    shown = run(capsys, tiny_model, "--prompt", "a", "--max-new-tokens", "3")
    assert "tokens/s" in shown.err
    assert "tokens/s" not in shown.out


def test_sampling_settings_reach_the_sampler(capsys, tiny_model, monkeypatch):
    seen = []
    generate = generate_main.engine.Engine.generate

    def spy(self, prompts, params, **kwargs):
        seen.append(params)
        return generate(self, prompts, params, **kwargs)

    monkeypatch.setattr(generate_main.engine.Engine, "generate", spy)
    arguments = "--top-k 3 --top-p 0.5 --min-p 0.1 --repetition-penalty 1.5 --max-new-tokens 2"
    run(capsys, tiny_model, "--prompt", "a", "--temperature", "0.3", *arguments.split())
    assert seen[-1] == sampling_params.SamplingParams(
        max_new_tokens=2,
        temperature=0.3,
        top_k=3,
        top_p=0.5,
        min_p=0.1,
        repetition_penalty=1.5,
        stop_token_ids=(1,),
    )
