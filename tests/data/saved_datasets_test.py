"""Rows of parquet files, Hugging Face data sets, Grain and TFDS are those of JSON lines."""

import json
import sys

import datasets
import grain
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.data import tokenizers
from tunix.data import errors, sft_data, sources

ROWS = [
    {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a" * i}]}
    for i in range(1, 6)
]


def values(source, **options):
    return [dict(row.values) for row in sources.read_rows(source, **options)]


def test_parquet_rows_know_their_number(tmp_path):
    path = tmp_path / "train.parquet"
    parquet.write_table(pa.Table.from_pylist(ROWS), path)
    assert values(path) == ROWS
    assert sources.read_rows(path)[3].where == f"{path}: row 3"


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    path = tmp_path / "train.parquet"
    path.write_text('{"text": "a"}')
    with pytest.raises(
        errors.DataError, match=r"train.parquet: not readable as parquet after row 0"
    ):
        sources.read_rows(path)


def test_keys_that_a_table_adds_do_not_reach_the_template(tmp_path):
    """Tables give every message every key; a template may ask whether a key is there."""
    path = tmp_path / "train.parquet"
    call = {"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}
    parquet.write_table(pa.Table.from_pylist([{"messages": [*ROWS[0]["messages"], call]}]), path)
    asks = "{% for m in messages %}{{ m.content + (' calls' if 'tool_calls' in m else '') }};"
    template = asks + "{% endfor %}{% if add_generation_prompt %}{% endif %}"
    tokenizer = tokenizers.make(template)
    batches, _ = sft_data.load(path, tokenizer, sft_data.SftDataConfig(batch_size=1))
    tokens = next(iter(batches))["input_tokens"][0]
    assert tokenizer.decode(tokens.tolist()).startswith("q1;a;x calls;<|endoftext|>")


def test_json_lists_and_several_files_are_read_in_order(tmp_path):
    (tmp_path / "b.json").write_text(json.dumps(ROWS[2:], indent=2))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS[:2])))
    (tmp_path / "c.json").write_text(json.dumps(ROWS[0]))
    assert values(f"{tmp_path}/[ab].json*") == ROWS
    assert values([f"{tmp_path}/b.json", tmp_path / "a.jsonl"]) == ROWS[2:] + ROWS[:2]
    assert values(f"{tmp_path}/c.json") == ROWS[:1], "an object is JSON lines, too"
    assert sources.read_rows(f"{tmp_path}/b.json")[1].where == f"{tmp_path}/b.json: item 1"


def test_a_broken_json_list_names_the_line(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "a"},\n {"text": }]')
    with pytest.raises(
        errors.DataError, match=r"a.json: not valid JSON at line 2: Expecting value"
    ):
        sources.read_rows(tmp_path / "a.json")


def test_hugging_face_data_sets_in_memory_on_disk_and_streaming(tmp_path):
    loaded = datasets.Dataset.from_list(ROWS)
    assert values(loaded) == ROWS
    assert values(loaded.to_iterable_dataset()) == ROWS
    loaded.save_to_disk(tmp_path / "one")
    assert values(tmp_path / "one") == ROWS
    splits = datasets.DatasetDict({"train": loaded, "test": loaded.select([0])})
    splits.save_to_disk(tmp_path / "two")
    assert values(f"{tmp_path}/two@test") == ROWS[:1]
    assert sources.read_rows(f"{tmp_path}/two@train")[2].where == f"{tmp_path}/two@train: row 2"
    for source, problem in [
        (splits, r"it is a mapping of \['test', 'train'\], not rows; choose one"),
        (tmp_path / "two", r"it has the splits \['test', 'train'\]; name one: .*two@test"),
        (f"{tmp_path}/two@dev", r"it has the splits .*, and 'dev' is none of them"),
        (f"{tmp_path}/one@train", "it has no splits, so leave out '@train'"),
    ]:
        with pytest.raises(errors.DataError, match=problem):
            sources.read_rows(source)


def test_the_hub_is_asked_for_what_the_address_says(monkeypatch):
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = sources.read_rows("hub:owner/name")
    assert rows[0].where == "hub:owner/name: row 0"
    list(sources.stream_rows("hub:owner/name/main@test", streaming=True))
    assert asked == [
        (("owner/name", None), {"split": "train", "streaming": False}),
        (("owner/name", "main"), {"split": "test", "streaming": True}),
    ]


def test_without_a_network_the_message_says_what_to_do_elsewhere(monkeypatch):
    def load_dataset(*args, **options):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(errors.DataError, match=r"if this machine is offline, call .*save_to_disk"):
        sources.read_rows("hub:owner/name")
    with pytest.raises(errors.DataError, match="expected hub:OWNER/NAME"):
        sources.read_rows("hub:name")


@pytest.mark.parametrize("module", ["datasets", "pyarrow"])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / "x.parquet"
    path.write_bytes(b"")
    source = "hub:owner/name" if module == "datasets" else path
    with pytest.raises(errors.DataError, match=r"pip install 'tunix\[data\]'"):
        sources.read_rows(source)


def test_grain_data_sets_and_loaders():
    in_order = grain.MapDataset.source(ROWS)
    assert values(in_order) == ROWS
    assert values(in_order.to_iter_dataset()) == ROWS
    shuffled = values(in_order.shuffle(seed=1))
    assert sorted(map(str, shuffled)) == sorted(map(str, ROWS))
    loader = grain.DataLoader(
        data_source=ROWS, sampler=grain.samplers.IndexSampler(len(ROWS), num_epochs=1, seed=0)
    )
    assert len(values(loader)) == 5
    with pytest.raises(errors.DataError, match=r"it repeats for ever .*without repeat\(\)"):
        sources.read_rows(in_order.repeat())


def test_a_tfds_data_source_is_read_by_index_and_its_bytes_are_text():
    class DataSource:  # what tfds.data_source(...) returns: random access, texts as bytes
        def __len__(self):
            return 2

        def __getitem__(self, i):
            if i >= 2:
                raise IndexError(i)
            text = {"en": b"one", "fr": "un\u00e9".encode()}
            return {"translation": text, "id": np.int64(i), "tags": np.array([b"x", b"y"], object)}

    assert values(DataSource())[1] == {
        "translation": {"en": "one", "fr": "un\u00e9"}, "id": 1, "tags": ["x", "y"],
    }  # fmt: skip
    with pytest.raises(errors.DataError, match="row 0: column 'text' is not UTF-8 at byte 1"):
        sources.read_rows([{"text": b"\xff"}])
