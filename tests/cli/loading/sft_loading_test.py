"""The data settings of ``tunix sft`` reach the batches."""

import json

import numpy as np
import pytest

from tests.data import tokenizers
from tunix.cli.loading import sft_loading
from tunix.cli.schemas import sft_schema, structure
from tunix.utils import config


def load(path, **data_config):
    raw = {
        "model_config": {"model_id": "x"},
        "data_path": str(path),
        "train_fraction": 0.5,
        "batch_size": 4,
        "data_config": data_config,
    }
    run = structure.structure(sft_schema.SftRun, raw, notes={}, source="x")
    return sft_loading.load_data(run, tokenizers.make())


def test_each_host_reads_its_rows_of_every_batch(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": word}) + "\n" for word in "abcdefgh"))
    whole = load(path)
    parts = [load(path, shard={"process_index": i, "process_count": 2}) for i in range(2)]
    for name in ("train_ds", "eval_ds"):
        (batch,) = getattr(whole, name)
        halves = [next(iter(getattr(part, name))) for part in parts]
        for key, array in batch.items():
            np.testing.assert_array_equal(np.concatenate([half[key] for half in halves]), array)
            assert len(halves[0][key]) == 2


def test_hosts_that_do_not_divide_a_batch_are_refused(tmp_path):
    with pytest.raises(config.ConfigError, match=r"data_config\.shard: a batch of 4 rows does not"):
        load(tmp_path / "x", shard={"process_index": 0, "process_count": 3})
