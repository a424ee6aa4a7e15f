"""The same rows give the same tokens, whether they are read from JSON lines or from a table."""

import json

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from tests.data import tokenizers
from tunix.data import prompts, sft_config, sft_data
from tunix.data.preference import preference_config, preference_data, preference_fit

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{{ m | tojson }}"
    "{% for c in m.tool_calls %}{{ c.function.name }}"
    "{% if 'arguments' in c.function %}{{ c.function.arguments | tojson }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def user(text, **more):
    return {"role": "user", "content": text, **more}


def calls(*functions, **more):
    return {"role": "assistant", **more, "tool_calls": [{"function": f} for f in functions]}


def tool(name, properties, **more):
    parameters = {"type": "object", "properties": properties, **more}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


ADD = tool("add", {"a": {"type": "number"}, "b": {"type": "number", "enum": [1, 2]}})
FIND = tool("find", {"text": {"type": "string", "description": "what"}}, required=["text"])
CHATS = [
    {
        "messages": [
            user("1 + 2?"),
            calls({"name": "add", "arguments": {"a": 1, "b": 2}}),
            {"role": "tool", "content": "3", "name": "add"},
            {"role": "assistant", "content": "3"},
        ],
        "tools": [ADD, FIND],
    },
    {
        "messages": [
            user("find x"),
            calls(
                {"name": "find", "arguments": {"text": "x"}},
                {"name": "now"},
                content="Well.",
            ),
        ],
        "tools": [FIND],
    },
    {"messages": [user("hi"), {"role": "assistant", "content": "ho", "weight": 0.5}]},
    {
        "messages": [user("hi"), calls({"name": "f", "arguments": '{"n": null, "a": [null]}'})],
        "tools": [tool("f", {"n": {"type": "object", "properties": {"k": {"type": "null"}}}})],
    },
]
# What a column cannot be in a table is written as JSON text: arguments above are objects or text.
TABLES = {"chats of objects": CHATS[:3], "chats with JSON text": [CHATS[2], CHATS[3]]}


def write(tmp_path, rows, kind):
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(filled(rows)), path)
    else:
        datasets.Dataset.from_list(filled(rows)).save_to_disk(path)
    return str(path)


def filled(rows):
    """Return rows that all have the columns of any, as a table does."""
    columns = {column: None for row in rows for column in row}
    return [columns | row for row in rows]


@pytest.mark.parametrize("kind", ["parquet", "saved"])
@pytest.mark.parametrize("rows", TABLES.values(), ids=TABLES)
def test_conversations_with_tools(tmp_path, rows, kind):
    tokenizer = tokenizers.make(TEMPLATE)
    settings = sft_config.SftDataConfig(shuffle_seed=None, batch_size=1, max_target_length=1024)
    found = {}
    for name in ("jsonl", kind):
        batches, account = sft_data.load(write(tmp_path, rows, name), tokenizer, settings)
        found[name] = [(b["input_tokens"].tolist(), b["input_mask"].tolist()) for b in batches]
        assert account.rows == len(rows)
    assert found["jsonl"] == found[kind]


def test_what_is_trained_has_no_key_that_nobody_wrote(tmp_path):
    tokenizer = tokenizers.make(TEMPLATE)
    settings = sft_config.SftDataConfig(shuffle_seed=None, batch_size=1, max_target_length=1024)
    batches, _ = sft_data.load(write(tmp_path, CHATS[:3], "parquet"), tokenizer, settings)
    texts = [tokenizer.decode(batch["input_tokens"][0].tolist()) for batch in batches]
    assert "null" not in "".join(texts)
    assert 'add{"a": 1, "b": 2}<|im_end|>' in texts[0]
    assert 'find{"text": "x"}now' in texts[1]
    assert json.dumps([ADD, FIND]) in texts[0], "in the order in which it was written"


def test_a_null_that_is_meant_is_written_as_json_text(tmp_path):
    tools = json.dumps([tool("f", {"n": {"default": None}})])
    rows = [CHATS[3] | {"tools": tools}, CHATS[2] | {"tools": None}]
    tokenizer = tokenizers.make(TEMPLATE)
    settings = sft_config.SftDataConfig(shuffle_seed=None, batch_size=1, max_target_length=1024)
    for kind in ("jsonl", "parquet"):
        batches, _ = sft_data.load(write(tmp_path, rows, kind), tokenizer, settings)
        text = tokenizer.decode(next(iter(batches))["input_tokens"][0].tolist())
        assert text.startswith(tools)
        assert 'f{"n": null, "a": [null]}<|im_end|>' in text


def test_prompts_and_preferences(tmp_path):
    tokenizer = tokenizers.make(TEMPLATE)
    talk = CHATS[0]["messages"]
    pairs = [
        {"prompt": talk[:1], "chosen": talk[1:], "rejected": CHATS[1]["messages"][1:]},
        {"prompt": [user("a", name="x")], "chosen": talk[-1:], "rejected": talk[1:2]},
    ]
    asked = [{"prompts": talk[:3], "answer": "3"}, {"prompts": [user("a")], "answer": "b"}]
    found = []
    for kind in ("jsonl", "parquet"):
        path = write(tmp_path, pairs, kind)
        dataset = preference_data.read_pairs(
            path, tokenizer, preference_config.PreferenceDataConfig(max_prompt_length=999)
        )
        rows, _ = prompts.load_rows(
            write(tmp_path, asked, kind), tokenizer, prompts.PromptDataConfig()
        )
        found.append(
            [
                *([p.prompt.tolist(), *(a.tokens.tolist() for a in p.answers)]
                  for p in dataset.examples),
                *(tokenizer.encode_prompt(row["prompts"]) for row in rows),
            ]
        )  # fmt: skip
        assert isinstance(dataset, preference_fit.PreferenceDataset)
    assert found[0] == found[1]


def test_a_map_is_an_object(tmp_path):
    kind = pyarrow.map_(pyarrow.string(), pyarrow.string())
    function = pyarrow.struct([("name", pyarrow.string()), ("arguments", kind)])
    call = pyarrow.list_(pyarrow.struct([("function", function)]))
    fields = [("role", pyarrow.string()), ("content", pyarrow.string()), ("tool_calls", call)]
    messages = [user("a"), calls({"name": "f", "arguments": {"x": "1", "y": "2"}})]
    column = pyarrow.array(
        [[user("a"), calls({"name": "f", "arguments": [("x", "1"), ("y", "2")]})]],
        pyarrow.list_(pyarrow.struct(fields)),
    )
    parquet.write_table(pyarrow.table({"messages": column}), tmp_path / "map.parquet")
    tokenizer = tokenizers.make(TEMPLATE)
    settings = sft_config.SftDataConfig(batch_size=1, max_target_length=1024)
    one, other = (
        next(iter(sft_data.load(source, tokenizer, settings)[0]))["input_tokens"].tolist()
        for source in (tmp_path / "map.parquet", [{"messages": messages}])
    )
    assert one == other
