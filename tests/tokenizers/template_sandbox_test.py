"""Templates that compute for ever, call themselves or fill the memory end in one message."""

import resource
import time

import pytest

from tunix.tokenizers import chat_template, template_sandbox

TALK = [{"role": "user", "content": "hi"}]
DOUBLED = "{% set ns = namespace(x='0123456789') %}{% for i in range(60) %}BODY{% endfor %}"
LAUGHS = "{% set a = ['ha'] * 10 %}" + "{% set a = [a] * 10 %}" * 12
LONG = "{% set a = 'a' * 1000000 %}"

ENDLESS = {
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    "{% endfor %}",
    "a loop over a list made before": "{% set r = range(99999) | list %}{% for i in r %}"
    "{% for j in r %}{% if j %}{% endif %}{% endfor %}{% endfor %}",
    "a macro that calls itself twice and ends late": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}"
    "{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}",
    "filters on long lists": "{% for i in range(99999) %}{{ range(99999) | sum }}{% endfor %}",
}
RECURSIVE = {
    "a macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "two macros": "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}"
    "{{ f() }}",
    "a loop": "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
}
LARGE = {
    "a text times a number": "{{ 'a' * 10 ** 10 }}",
    "a list times a number": "{{ [0] * 10 ** 9 }}",
    "a power": "{{ 7 ** (10 ** 8) }}",
    "squares of squares": DOUBLED.replace("'0123456789'", "3").replace(
        "BODY", "{% set ns.x = ns.x * ns.x %}"
    ),
    "a text joined to itself": DOUBLED.replace("BODY", "{% set ns.x = ns.x ~ ns.x %}"),
    "a text added to itself": DOUBLED.replace("BODY", "{% set ns.x = ns.x + ns.x %}"),
    "a block with itself": DOUBLED.replace(
        "BODY", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"
    ),
    "lists in lists as JSON": LAUGHS + "{{ a | tojson }}",
    "lists in lists printed": LAUGHS + "{{ a }}",
    "lists in lists joined": LAUGHS + "{{ a ~ '' }}",
    "a filter with a width": "{{ 'a' | center(10000000000) }}",
    "a filter for every item": "{{ range(99999) | map('center', 99999) | list | length }}",
    "a method with a width": "{{ 'a'.ljust(10000000000) }}",
    "a width in a format": "{{ '%9999999999d' % 3 }}",
    "a width beside a format": "{{ '%*d' % (9999999999, 3) }}",
    "a width in braces": "{{ '{:9999999999}'.format(3) }}",
    "a width beside braces": "{{ '{:{}}'.format(3, 9999999999) }}",
    "a width for a filter": "{{ '%9999999999d' | format(3) }}",
    "a replacement": LONG + "{{ a.replace('a', a) }}",
    "a replacement by a filter": LONG + "{{ a | replace('a', a) }}",
    "a long separator": LONG + "{{ range(99999) | join(a) }}",
    "a method with a long separator": LONG + "{{ a.join(['b'] * 99999) }}",
    "tabs": "{{ ('\\t' * 99999).expandtabs(99999) }}",
    "parts of a text": "{% set a = 'a' * 9000000 %}{% set ns = namespace(l=[]) %}"
    "{% for i in range(99999) %}{% set ns.l = ns.l + [a[1:]] %}{% endfor %}",
    "a batch": "{{ [1] | batch(1000000000, 'x') | list }}",
    "an indentation": "{{ ([0] * 99999) | tojson(indent=99999) }}",
    "what is printed": LONG + "{% for i in range(99999) %}{{ a }}{% endfor %}",
}


def refusal(source, messages=TALK):
    with pytest.raises(chat_template.ChatTemplateError) as caught:
        chat_template.ChatTemplate(source, where="chat template of x").render(messages)
    assert str(caught.value).startswith("chat template of x: ")
    return str(caught.value)


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_a_template_that_does_not_end_is_stopped(source, monkeypatch):
    monkeypatch.setattr(template_sandbox, "MAX_SECONDS", 0.2)
    start = time.process_time()
    message = refusal(source)
    assert "computed for more than 0.2 s and may never end; mend its loops" in message
    assert time.process_time() - start < 2


@pytest.mark.parametrize("source", RECURSIVE.values(), ids=RECURSIVE)
def test_a_template_that_calls_itself_is_stopped(source):
    assert "it calls itself without an end; mend its macros" in refusal(source)


@pytest.mark.parametrize("source", LARGE.values(), ids=LARGE)
def test_a_template_does_not_fill_the_memory(source):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "it makes more than 10,000,000 characters, items or digits" in refusal(source)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000, "kilobytes"


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", id="brackets"),
        pytest.param("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, id="loops"),
        pytest.param("{% if 1 %}" * 500 + "{% endif %}" * 500, id="conditions"),
    ],
)
def test_a_template_that_nests_too_deep_is_refused_when_it_is_compiled(source):
    with pytest.raises(chat_template.ChatTemplateError, match="chat template: nests too deep"):
        chat_template.ChatTemplate(source)


def test_long_conversations_are_far_from_the_limits():
    source = (
        "{% for m in messages %}{% if loop.last and m.role is none %}{% endif %}"
        "{{ '<|' + m.role + '|>' + m.content | trim + '**%s**' % loop.index }}{% endfor %}"
    )
    talk = [{"role": "user", "content": "x" * 1000}] * 2000
    start = time.thread_time()
    text = chat_template.ChatTemplate(source).render(talk).text
    assert text.startswith("<|user|>xxx")
    assert text.endswith("x**2000**")
    assert time.thread_time() - start < template_sandbox.MAX_SECONDS / 4


def test_loops_keep_what_jinja_says_of_them():
    source = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ '!' if loop.last }}"
        "{% if loop.previtem %}<{{ loop.previtem.content }}{% endif %} {% else %}none{% endfor %}"
        "{% for x in nothing %}{% else %}empty{% endfor %}"
        "{% for k, v in {'a': 1}.items() if v %}{{ k }}{{ v }}{% endfor %}{{ 'abc'[::-1] }}"
    )
    talk = [{"role": "user", "content": c} for c in "abc"]
    expected = "1/3 2/3<a 3/3!<b emptya1cba"
    assert chat_template.ChatTemplate(source).render(talk).text == expected
