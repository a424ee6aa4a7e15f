"""Templates print what is meant: no ``None``, and arguments of calls as JSON, once."""

import itertools
import json

import pytest
import transformers

from tests.tokenizers import tiny_tokenizer
from tunix.tokenizers import chat_template, content_guard, tokenizer_adapter

ARGUMENTS = {"city": "Paris", "n": None, "deep": {"a": [1, None]}}
USER = {"role": "user", "content": "hi"}
HEAD = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
TAIL = (
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CALLS = "{% for c in m.tool_calls %}{{ c.function.name }} BODY;{% endfor %}"


def called(arguments, **more):
    function = {"name": "weather", "arguments": arguments}
    call = {"type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call], **more}


def shown(content, calls="{{ c.function.arguments | tojson }}"):
    return HEAD + content + CALLS.replace("BODY", calls) + TAIL


def ours(source, messages, **options):
    return chat_template.ChatTemplate(source).render(messages, **options).text


def theirs(source, messages):
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.make())
    return tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("{{ m.content }}", id="printed"),
        pytest.param("{{ '' + m.content + '' }}", id="added to text"),
        pytest.param("{{ m.content ~ '' }}", id="joined with text"),
        pytest.param("{{ m.content | trim }}", id="trimmed by a filter"),
        pytest.param("{{ m.content.strip() }}", id="trimmed by a method"),
        pytest.param("{{ m['content'] | string | replace('a', 'b') }}", id="made text"),
        pytest.param("{% if 'x' in m.content %}x{% endif %}{{ m.content }}", id="searched"),
        pytest.param("{{ m.content.split('</think>')[-1] }}", id="split"),
        pytest.param("{% for part in m.content %}{{ part.text }}{% endfor %}", id="gone through"),
        pytest.param("{{ m.content[:10] if m.content | length else '' }}", id="measured"),
    ],
)
def test_null_content_beside_a_call_is_printed_as_nothing(content):
    text = ours(shown(content), [called({"a": 1})])
    assert text == '<|im_start|>assistant\nweather {"a": 1};<|im_end|>\n'


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("{% if m.content is not none %}{{ m.content }}{% endif %}", id="is not none"),
        pytest.param("{% if m.content is none %}null{% endif %}", id="is none"),
        pytest.param("{% if m.content == none %}null{% endif %}", id="== none"),
        pytest.param("{% if m.content != none %}{{ m.content }}{% endif %}", id="!= none"),
        pytest.param("{% if m.content %}{{ m.content }}{% else %}-{% endif %}", id="if"),
        pytest.param("{{ m.content or '-' }}", id="or"),
        pytest.param("{{ m.content | default('-', true) }}", id="default"),
        pytest.param("{% if m.content is string %}text{% else %}-{% endif %}", id="is string"),
        pytest.param("{% if m.content is defined %}there{% endif %}", id="is defined"),
        pytest.param("{% if m.content is mapping %}object{% endif %}", id="is mapping"),
        pytest.param("{{ m | tojson }}", id="the whole message as JSON"),
        pytest.param("{% if 'content' in m %}there{% endif %}", id="in"),
    ],
)
@pytest.mark.parametrize("value", [None, "", "text"])
def test_a_template_that_asks_is_told_what_transformers_tells_it(content, value):
    talk = [called({"a": 1}, content=value)]
    assert ours(shown(content), talk) == theirs(shown(content), talk)


FORMS = {
    "as JSON": "{{ c.function.arguments | tojson }}",
    "printed": "{{ c.function.arguments }}",
    "added to text": "{{ '' + c.function.arguments + '' }}",
    "joined with text": "{{ c.function.arguments ~ '' }}",
    "as JSON if they are no text": "{% if c.function.arguments is string %}"
    "{{ c.function.arguments }}{% else %}{{ c.function.arguments | tojson }}{% endif %}",
    "as JSON if they are an object": "{% if c.function.arguments is mapping %}"
    "{{ c.function.arguments | tojson }}{% else %}{{ c.function.arguments }}{% endif %}",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("as_text", [False, True], ids=["an object", "JSON text"])
def test_arguments_are_encoded_once_however_they_are_given(form, as_text):
    arguments = json.dumps(ARGUMENTS) if as_text else ARGUMENTS
    text = ours(shown("", FORMS[form]), [called(arguments)])
    assert text == f"<|im_start|>assistant\nweather {json.dumps(ARGUMENTS)};<|im_end|>\n"


def test_arguments_as_json_text_can_be_gone_through():
    source = shown("", "{% for k, v in c.function.arguments | items %}{{ k }}={{ v }} {% endfor %}")
    for arguments in ({"a": 1, "b": "x"}, '{"a": 1, "b": "x"}'):
        assert "weather a=1 b=x ;" in ours(source, [called(arguments)])


def test_reasoning_is_found_under_any_of_its_names():
    for ours_is, theirs_is in itertools.permutations(("reasoning_content", "thinking"), 2):
        source = "{{ messages[0]." + ours_is + " }}"
        for name in (ours_is, theirs_is, "reasoning"):
            talk = [{"role": "assistant", "content": "yes", name: "hm"}]
            assert ours(source, talk) == theirs(source, talk) == "hm"


def test_arguments_of_every_place_a_call_may_stand_in_are_meant():
    flat = {"role": "assistant", "content": None,
            "tool_calls": [{"name": "f", "arguments": '{"a": 1}'}]}  # fmt: skip
    assert ours("{{ messages[0].tool_calls[0].arguments | tojson }}", [flat]) == '{"a": 1}'
    old = {"role": "assistant", "content": None,
           "function_call": {"name": "f", "arguments": '{"a": 1}'}}  # fmt: skip
    assert ours("{{ messages[0].function_call.arguments | tojson }}", [old]) == '{"a": 1}'


def test_arguments_that_are_no_json_stay_what_they_are():
    for text in ("a: 1", "[1]", "3", ""):
        found = ours("{{ messages[0].tool_calls[0].function.arguments }}", [called(text)])
        assert found == text


def test_what_is_typed_into_arguments_is_text_in_both_forms():
    tokenizer = tokenizer_adapter.TokenizerAdapter(
        tiny_tokenizer.make(),
        special_ids=tokenizer_adapter.SpecialIds(eos=0),
        chat_template=shown("{{ m.content }}"),
    )
    typed = {"a": '<|im_end|> "x"', "<|im_start|>": ["{"]}
    first, second = (
        tokenizer.encode_chat([USER, called(arguments)]) for arguments in (typed, json.dumps(typed))
    )
    assert first == second
    assert [i for i in first.ids if i in (1, 2)] == [1, 2, 1, 2], "the template's own"
    ((start, end),) = first.spans
    assert tokenizer.decode(first.ids[start:end]) == f"weather {json.dumps(typed)};<|im_end|>"


def left_out(source, messages, **options):
    template = chat_template.ChatTemplate(source)
    guard = content_guard.ContentGuard(tiny_tokenizer.SPECIAL)
    with pytest.raises(chat_template.ChatTemplateError, match="leaves out") as caught:
        content_guard.render_guarded(template, guard, messages, **options)
    return str(caught.value)


def test_a_call_that_the_template_does_not_print_is_an_error():
    assert "leaves out call 0 of message 1 ('weather')" in left_out(
        tiny_tokenizer.CHATML, [USER, called({})]
    )


def test_a_call_is_not_found_in_the_list_of_tools():
    source = "{{ tools | tojson }}" + tiny_tokenizer.CHATML
    message = left_out(source, [USER, called({})], tools=[{"name": "weather"}])
    assert "call 0 of message 1 ('weather')" in message


def test_a_second_call_that_the_template_does_not_print_is_an_error():
    talk = [USER, called({}) | {"tool_calls": called({})["tool_calls"] * 2}]
    message = left_out(tiny_tokenizer.TOOLS, talk)
    assert "call 1 of message 1" in message
    assert "call 0" not in message


@pytest.mark.parametrize("role", ["system", "tool"])
def test_a_message_that_the_template_does_not_print_is_an_error(role):
    source = (
        "{% for m in messages if m.role in ('user', 'assistant') %}{{ m.content }}\n{% endfor %}"
    )
    message = left_out(source, [{"role": role, "content": "Be brief."}, USER])
    assert f"leaves out message 0 (of role {role!r})" in message


def test_a_template_may_strip_thoughts_and_space_from_what_it_prints():
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n  Hello "}
    talk = [USER, thought, USER, {"role": "assistant", "content": " yes "}]
    guard = content_guard.ContentGuard(tiny_tokenizer.SPECIAL)
    for source, add in itertools.product((tiny_tokenizer.THINKING, tiny_tokenizer.GEMMA), (0, 1)):
        template = chat_template.ChatTemplate(source)
        chat = content_guard.render_guarded(template, guard, talk, add_generation_prompt=bool(add))
        assert "Hello" in chat.text
