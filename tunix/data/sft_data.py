"""From rows to batches for supervised tuning, with an account of every row.

Tokenizing happens once, in memory, before training: whatever is wrong with a row is found
before the first step, and the report can name it. Data that does not fit in memory is for
``sft_stream``.
"""

from collections.abc import Mapping, Sequence

from tunix.data import (
    batching,
    errors,
    example_reader,
    fingerprint,
    iterators,
    mixing,
    packing,
    report,
    sft_config,
    sources,
    tokenize,
)

SftDataConfig = sft_config.SftDataConfig
Rows = list[tokenize.TokenizedExample]


def tokenize_rows(
    rows: Sequence[sources.Row],
    tokenizer: tokenize.Tokenizer,
    settings: SftDataConfig,
    *,
    name: str = "data",
    problems: Sequence[str] = (),
) -> tuple[Rows, report.DataReport]:
    """Return the examples to train on and a report of all rows.

    Args:
        rows: From ``sources.read_rows``.
        tokenizer: A ``TokenizerAdapter``.
        settings: Format, length and what to do with rows that cannot be used.
        name: What the report calls the data.
        problems: What ``read_rows`` has noted; raised with what is wrong with ``rows``.

    Raises:
        DataError: Lists every row that cannot be used under these settings.
    """
    account = report.DataReport(source=name)
    reader = example_reader.ExampleReader(tokenizer, settings, account)
    kept: Rows = []
    found = list(problems)
    for row in rows:
        example = reader.read(row, found)
        if example is not None:
            kept.append(example)
    if not kept and not found:
        found.append(f"no row is left to train on; {account}")
    if found:
        raise errors.DataError(name, found)
    return kept, account


def make_batches(
    examples: Rows,
    tokenizer: tokenize.Tokenizer,
    settings: SftDataConfig,
    *,
    order: mixing.Order | None = None,
    shard: batching.Shard = batching.WHOLE,
) -> iterators.Batches[batching.Batch]:
    """Return batches of ``examples``; every ``iter()`` of it begins anew and can be resumed.

    Args:
        examples: From :func:`tokenize_rows`.
        tokenizer: Says what padding holds.
        settings: Batch size, packing, shuffling and epochs.
        order: The indices of each epoch; by default every example once.
        shard: Which rows of every batch this host gets.

    Raises:
        ValueError: If a batch does not divide among the hosts.
    """
    shard.require_divides(settings.batch_size)
    lengths = [len(example.tokens) for example in examples]
    lay_out = batch_layout(tokenizer.pad_id(), settings, shard, longest=max(lengths, default=1))
    pack = packing.packer(
        lengths,
        capacity=settings.max_target_length,
        window=settings.packing_window,
    )
    group = pack if settings.packing else None
    content = fingerprint.combined(example.checksum for example in examples)
    return iterators.Batches.of(
        examples, settings, lay_out, group=group, order=order, content=content
    )


def batch_layout(
    pad_id: int,
    settings: SftDataConfig,
    shard: batching.Shard = batching.WHOLE,
    *,
    longest: int,
) -> batching.Layout:
    """Return what lays rows of examples into the batches that ``settings`` describe.

    Args:
        pad_id: What padding holds.
        settings: See :func:`make_batches`.
        shard: Which rows this host gets.
        longest: Tokens of the longest example. Where all are known, all batches have one shape;
            of a stream that does not tell, a batch of longer ones has ``max_target_length``.
    """
    usual = most = settings.max_target_length
    buckets = batching.length_buckets(most)
    if settings.pad_to == "longest" and not settings.packing:
        usual = batching.row_length(longest, most)

    def lay_out(rows: Sequence[Sequence[tokenize.TokenizedExample]]) -> batching.Batch:
        needed = max(sum(len(example.tokens) for example in row) for row in rows)
        length = usual if needed <= usual else most
        if settings.pad_to == "bucket" and not settings.packing:
            length = batching.bucket_for(needed, buckets)
        batch = batching.collate(rows, num_rows=settings.batch_size, length=length, pad_id=pad_id)
        return shard.rows_of(batch)

    return lay_out


def load(
    source: sources.Source,
    tokenizer: tokenize.Tokenizer,
    settings: SftDataConfig,
    *,
    columns: Mapping[str, str] | None = None,
    shard: batching.Shard = batching.WHOLE,
) -> tuple[iterators.Batches[batching.Batch], report.DataReport]:
    """Read, tokenize and batch ``source``.

    Args:
        source: A file, pattern, directory, hub id or iterable; see ``sources.Source``.
        tokenizer: A ``TokenizerAdapter``.
        settings: See :class:`SftDataConfig`.
        columns: New name to name in the data, for columns to rename.
        shard: Which rows of every batch this host gets.

    Raises:
        DataError: Lists everything wrong with the file and its rows.
    """
    examples, account = _read(source, tokenizer, settings, columns)
    return make_batches(examples, tokenizer, settings, shard=shard), account


def _read(
    source: sources.Source,
    tokenizer: tokenize.Tokenizer,
    settings: SftDataConfig,
    columns: Mapping[str, str] | None,
) -> tuple[Rows, report.DataReport]:
    problems: list[str] = []
    rows = sources.read_rows(source, columns=columns, problems=problems)
    name = sources.name_of(source)
    return tokenize_rows(rows, tokenizer, settings, name=name, problems=problems)


def load_mixture(
    parts: Sequence[sources.Source],
    weights: Sequence[float],
    tokenizer: tokenize.Tokenizer,
    settings: SftDataConfig,
    *,
    stop: mixing.Stop = "first_exhausted",
    columns: Mapping[str, str] | None = None,
    shard: batching.Shard = batching.WHOLE,
) -> tuple[iterators.Batches[batching.Batch], list[report.DataReport]]:
    """Read several sources and mix their examples by weight; one report for each.

    The sources may differ in format. The other arguments are those of :func:`load` and
    ``mixing.mixed_order``.

    Raises:
        DataError: Lists everything wrong with a source.
        ConfigError: If weights and sources do not fit each other.
    """
    examples: Rows = []
    reports, sizes = [], []
    faults = errors.Faults()
    for source in parts:
        with faults.noted():
            found, account = _read(source, tokenizer, settings, columns)
            examples += found
            sizes.append(len(found))
            reports.append(account)
    faults.check()
    order = mixing.mixed_order(sizes, weights, shuffle_seed=settings.shuffle_seed, stop=stop)
    return make_batches(examples, tokenizer, settings, order=order, shard=shard), reports
