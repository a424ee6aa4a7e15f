"""From a file to batches: nothing is lost, and whatever is left out is reported."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data import tokenizers
from tunix.data import batching, errors, report, sft_data, sources, translation
from tunix.utils import config

TOKENIZER = tokenizers.make()


def pairs(*lengths):
    """Return rows whose prompt is one token and whose completion is ``n`` with its EOS."""
    rows = [{"prompt": "a", "completion": "b" * (n - 1)} for n in lengths]
    assert [len(TOKENIZER.encode(r["completion"])) for r in rows] == [n - 1 for n in lengths]
    return rows


def tokenized(rows, **settings):
    return sft_data.tokenize_rows(
        sources.read_rows(rows), TOKENIZER, sft_data.SftDataConfig(**settings)
    )


def test_the_report_counts_what_is_trained():
    examples, account = tokenized(pairs(3, 5))
    assert [example.trained_tokens for example in examples] == [3, 5]
    assert str(account) == (
        "data: 2 rows, 10 tokens, 8 of them trained (80.0%), the longest row has 6."
    )


@pytest.mark.parametrize("where", ["list", "file"])
def test_a_row_that_is_too_long_stops_everything_and_is_named(tmp_path, where):
    source = pairs(3, 9, 10)
    if where == "file":
        source = tmp_path / "train.jsonl"
        source.write_text("\n".join(map(json.dumps, pairs(3, 9, 10))))
    with pytest.raises(errors.DataError) as caught:
        sft_data.load(source, TOKENIZER, sft_data.SftDataConfig(max_target_length=8))
    at = "row {}" if where == "list" else f"{source}:{{}}"
    first = 1 if where == "list" else 2
    where = "columns 'prompt' and 'completion'"
    assert f"{at.format(first)}: {where}: has 10 tokens, max_target_length is 8" in str(
        caught.value
    )
    assert f"{at.format(first + 1)}: {where}: has 11 tokens" in str(caught.value)


def test_rows_that_are_too_long_can_be_dropped():
    examples, account = tokenized(pairs(3, 9, 4), max_target_length=8, too_long="drop")
    assert [example.trained_tokens for example in examples] == [3, 4]
    assert account.dropped == {"longer than 8 tokens": ["row 1"]}
    assert "Dropped 1 row (row 1): longer than 8 tokens." in str(account)


def test_truncated_rows_keep_their_beginning_and_are_reported_as_never_stopping():
    examples, account = tokenized(pairs(3, 9), max_target_length=8, too_long="keep_start")
    assert [len(example.tokens) for example in examples] == [4, 8]
    assert examples[1].loss_weights.tolist() == [0.0] + [1.0] * 7
    assert account.truncated == account.never_stop == ["row 1"]
    assert "Truncated 1 row (row 1)." in str(account)
    assert "the model does not learn to stop" in str(account)


UNTRAINABLE = {"messages": [{"role": "user", "content": "hi"}]}
TRAINABLE = {"messages": [*UNTRAINABLE["messages"], {"role": "assistant", "content": "ho"}]}


def test_a_row_without_a_token_to_train_is_an_error():
    with pytest.raises(
        errors.DataError, match="row 1: column 'messages': it has no token to train"
    ):
        tokenized([TRAINABLE, UNTRAINABLE])


def test_rows_without_a_token_to_train_can_be_dropped_but_not_all_of_them():
    examples, account = tokenized([TRAINABLE, UNTRAINABLE], untrainable="drop")
    assert len(examples) == account.rows == 1
    assert account.dropped == {"no token to train": ["row 1"]}
    with pytest.raises(errors.DataError, match="no row is left to train on"):
        tokenized([UNTRAINABLE], untrainable="drop")


def test_a_row_whose_reply_is_cut_off_by_truncation_is_untrainable():
    rows = [{"prompt": "a " * 9, "completion": "b"}]
    with pytest.raises(
        errors.DataError, match="what is left of it in 8 tokens has no token to train"
    ):
        tokenized(rows, max_target_length=8, too_long="keep_start")


def test_what_a_template_refuses_is_named_by_row():
    tokenizer = tokenizers.make("{{ raise_exception('no ' + messages[0].content) }}")
    rows = sources.read_rows([TRAINABLE])
    with pytest.raises(errors.DataError, match=r"row 0: column 'messages': chat template: .*no hi"):
        sft_data.tokenize_rows(rows, tokenizer, sft_data.SftDataConfig())


def test_columns_can_be_renamed():
    _, account = sft_data.load(
        [{"q": "a", "a": "b"}],
        TOKENIZER,
        sft_data.SftDataConfig(),
        columns={"prompt": "q", "completion": "a"},
    )
    assert account.rows == 1


def test_all_batches_have_the_length_of_the_longest_example():
    examples, _ = tokenized(pairs(3, 100), max_target_length=200)
    settings = {"batch_size": 1, "shuffle_seed": None, "max_target_length": 200}
    batches = sft_data.make_batches(examples, TOKENIZER, sft_data.SftDataConfig(**settings))
    assert [b["input_tokens"].shape for b in batches] == [(1, 128)] * 2


@pytest.mark.parametrize(("pad_to", "lengths"), [("max", [200, 200]), ("bucket", [64, 128])])
def test_rows_may_be_as_long_as_the_settings_allow_or_as_their_batch_needs(pad_to, lengths):
    examples, _ = tokenized(pairs(3, 100), max_target_length=200)
    settings = {"batch_size": 1, "shuffle_seed": None, "max_target_length": 200, "pad_to": pad_to}
    batches = sft_data.make_batches(examples, TOKENIZER, sft_data.SftDataConfig(**settings))
    assert [b["input_tokens"].shape for b in batches] == [(1, length) for length in lengths]


@given(
    lengths=st.lists(st.integers(2, 15), min_size=1, max_size=30),
    packing=st.booleans(),
    batch_size=st.integers(1, 5),
    seed=st.none() | st.integers(0, 3),
)
def test_an_epoch_trains_every_token_once_however_it_is_batched(lengths, packing, batch_size, seed):
    settings = sft_data.SftDataConfig(
        max_target_length=16, packing=packing, batch_size=batch_size, shuffle_seed=seed
    )
    batches, account = sft_data.load(pairs(*lengths), TOKENIZER, settings)
    epoch = list(batches)
    assert sum(b["input_mask"].sum() for b in epoch) == sum(lengths) == account.trained_tokens
    assert sum((b["segment_ids"] > 0).sum() for b in epoch) == account.tokens
    assert {b["input_tokens"].shape for b in epoch} == {(batch_size, 16)}


def test_packing_saves_rows_and_the_shape_never_changes():
    settings = sft_data.SftDataConfig(max_target_length=16, packing=True, batch_size=2)
    batches, _ = sft_data.load(pairs(*[7] * 8), TOKENIZER, settings)
    assert [b["input_tokens"].shape for b in batches] == [(2, 16)] * 2
    for batch in batches:
        assert (np.sort(np.unique(batch["segment_ids"])) == [1, 2]).all()


def test_training_resumes_at_the_next_batch():
    settings = sft_data.SftDataConfig(max_target_length=16, batch_size=2, num_epochs=2)
    batches, _ = sft_data.load(pairs(*range(2, 12)), TOKENIZER, settings)
    whole, first, second = list(batches), iter(batches), iter(batches)
    for _ in range(7):
        next(first)
    second.set_state(first.get_state())
    for ours, theirs in zip(second, whole[7:], strict=True):
        np.testing.assert_array_equal(ours["input_tokens"], theirs["input_tokens"])


def test_every_bad_setting_is_named():
    with pytest.raises(config.ConfigError) as caught:
        sft_data.SftDataConfig(
            format="mesages",
            max_target_length=1,
            too_long="cut",
            untrainable="keep",
            train_on="prompts",
            batch_size=0,
            packing_window=0,
            pad_to="min",
            shuffle_seed=-1,
            num_epochs=0,
            last_batch="pad",
        )
    assert len(caught.value.problems) == 11
    assert "did you mean 'messages'" in str(caught.value)


def test_a_long_list_of_rows_is_shortened():
    account = report.DataReport(rows=1, truncated=[f"row {i}" for i in range(1234)])
    assert "1,234 rows (row 0, row 1, row 2, row 3, row 4 and 1,229 more)" in str(account)


def test_the_end_of_a_long_row_can_be_kept():
    examples, account = tokenized(pairs(9), max_target_length=8, too_long="keep_end")
    assert len(examples[0].tokens) == 8
    assert examples[0].tokens[-1] == tokenizers.EOS
    assert (account.truncated, account.never_stop) == (["row 0"], [])
    with_bos = tokenizers.make(bos="<bos>")
    settings = sft_data.SftDataConfig(max_target_length=8, too_long="keep_end")
    examples, _ = sft_data.tokenize_rows(sources.read_rows(pairs(9)), with_bos, settings)
    assert examples[0].tokens[[0, -1]].tolist() == [tokenizers.BOS, tokenizers.EOS]


def test_hosts_share_the_rows_of_every_batch_also_of_the_last():
    settings = sft_data.SftDataConfig(max_target_length=16, batch_size=4, num_epochs=2)
    whole = list(sft_data.load(pairs(*range(2, 12)), TOKENIZER, settings)[0])
    shards = [batching.Shard(process_index=i, process_count=2) for i in range(2)]
    parts = [
        list(sft_data.load(pairs(*range(2, 12)), TOKENIZER, settings, shard=shard)[0])
        for shard in shards
    ]
    for batch, *halves in zip(whole, *parts, strict=True):
        for name, array in batch.items():
            np.testing.assert_array_equal(array, np.concatenate([half[name] for half in halves]))


@pytest.mark.parametrize(
    ("shard", "message"),
    [((0, 3), "a batch of 4 rows does not divide among 3"), ((2, 2), "process_index 2 is none of")],
)
def test_batches_that_do_not_divide_among_hosts_are_refused(shard, message):
    settings = sft_data.SftDataConfig(max_target_length=16, batch_size=4)
    index, count = shard
    with pytest.raises(ValueError, match=message):
        sft_data.load(
            pairs(3), TOKENIZER, settings,
            shard=batching.Shard(process_index=index, process_count=count),
        )  # fmt: skip


LONG = {"prompt": "a", "completion": "b" * 30}
CHANGES = {
    "format": (pairs(3, 4), {}, "text"),
    "translation": (
        [{"src": "a", "dst": "b"}], {},
        translation.TranslationConfig(source="src", target="dst", prefix="c"),
    ),
    "train_on": ([{"prompt": "a b c", "completion": "d"}], {}, "everything"),
    "max_target_length": (pairs(3, 4), {"pad_to": "max"}, 32),
    "too_long": ([*pairs(3), LONG], {}, "keep_end"),
    "untrainable": ([TRAINABLE, UNTRAINABLE], {}, "drop"),
    "batch_size": (pairs(3, 4), {}, 1),
    "packing": (pairs(3, 4), {}, True),
    "packing_window": (pairs(*[3] * 8), {"packing": True}, 1),
    "pad_to": (pairs(3), {"max_target_length": 100}, "max"),
    "shuffle_seed": (pairs(*range(2, 12)), {}, None),
    "num_epochs": (pairs(3, 4), {}, 2),
    "last_batch": (pairs(3, 4, 5), {}, "drop"),
}  # fmt: skip


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(sft_data.SftDataConfig)])
def test_every_setting_changes_what_is_trained(field):
    rows, others, value = CHANGES[field]

    def outcome(**settings):
        config = sft_data.SftDataConfig(
            **({"max_target_length": 16, "batch_size": 2} | others | settings)
        )
        try:
            batches, _ = sft_data.load(rows, TOKENIZER, config)
        except errors.DataError as error:
            return str(error)
        return [{name: array.tolist() for name, array in batch.items()} for batch in batches]

    assert outcome() != outcome(**{field: value})
