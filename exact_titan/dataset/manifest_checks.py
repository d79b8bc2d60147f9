"""The checks of a manifest's numbers and names. They come before any number is used.

A manifest may come from another person, and its fingerprint may fit. A number that passes these checks divides nothing
by zero, fits int64 in every sum, and has an exact float64. The sizes of the shards bound the remaining numbers:
:func:`check_shard_numbers` compares them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from exact_titan.dataset.parsed_records import AGAIN
from exact_titan.dataset.policies import POLICIES
from exact_titan.dataset.records import ShardRecord, SplitRecord
from exact_titan.documents.tokenizer_record import TokenizerRecord
from exact_titan.errors import InputError
from exact_titan.exposure import Buckets

SPLITS = ("train", "val")
MOST_WINDOW = 2**26
"""Inputs of the longest window. The reading of a window of this length takes 2 GiB of memory."""
MOST_IDS = 2**22
"""Token ids of the largest vocabulary. The largest published vocabularies have about 2^20 ids."""
MOST_INPUTS = 2**53
"""Inputs of all windows of a split. A float64 counts exactly up to this number."""
DTYPES = {"uint16": 2**16, "uint32": 2**32}
"""The types of the ids in the shards, and their numbers of ids."""


def check_dataset(
    file: Path,
    *,
    window: int,
    policy: str,
    val_fraction: float,
    token_dtype: str,
    tokenizer: TokenizerRecord,
) -> None:
    """Check the numbers and names of a manifest outside its splits.

    Args:
        file: the manifest, for messages.
        window, policy, val_fraction, token_dtype, tokenizer: the values of these keys. Every integer is from 0 to
            2^63 - 1.

    Raises:
        InputError: if a value is impossible. The error names the file and the key.
    """
    ids, eos_id = tokenizer.vocab_size, tokenizer.eos_id
    most = min(MOST_IDS, DTYPES.get(token_dtype, 0))
    policies = ", ".join(POLICIES)
    rules = (
        (f"window is {window}", 2 <= window <= MOST_WINDOW, f"a window has from 2 to {MOST_WINDOW} tokens"),
        (f"policy is {policy!r:.60}", policy in POLICIES, f"this version knows {policies}"),
        (f"val_fraction is {val_fraction}", 0 <= val_fraction < 1, "it is a share, from 0 to below 1"),
        (f"token_dtype is {token_dtype!r:.60}", token_dtype in DTYPES, f"choose one of {', '.join(DTYPES)}"),
        (f"tokenizer.vocab_size is {ids}", 1 <= ids <= most, f"with {token_dtype} it is from 1 to {most}"),
        (f"tokenizer.eos_id is {eos_id}", eos_id < ids, f"the tokenizer has {ids} ids"),
    )
    _check(file, rules)


def check_split(
    file: Path, split: str, record: SplitRecord, window: int, *, masked: bool, has_parts: bool = True
) -> None:
    """Check the numbers and names of a split.

    Args:
        file: the file with the record, for messages.
        split: name of the split.
        record: the record. Every number is from 0 to 2^63 - 1.
        window: inputs per window, from 2 to :data:`MOST_WINDOW`.
        masked: whether the dataset has labels without a loss.
        has_parts: whether the record has the documents of every part (all formats except format 1).

    Raises:
        InputError: if a number or a name is impossible, or the numbers do not fit each other. The error names the file
            and the key.
    """
    _check(file, _split_rules(split, record, window))
    if has_parts and (documents := sum(record.parts)) != record.documents:
        raise InputError(
            f"{file}: the parts of {split} have {documents} documents, and the split has {record.documents}: {AGAIN}"
        )
    for what, found, said in _sums(record, window, masked=masked):
        if found != said:
            raise InputError(f"{file}: {what} of {split}: found {found}, the manifest says {said}: {AGAIN}")


def check_names(file: Path, split: str, record: SplitRecord) -> None:
    """Check that the split has a known name, and that its shards have the names of shards of this split.

    Raises:
        InputError: if a name is another name. A name could lead out of the folder.
    """
    _check(file, _name_rules(split, record))


def check_shard_numbers(file: Path, shard: ShardRecord, token_bytes: int) -> None:
    """Check that a shard of this size can have as many windows, segments and tokens as the manifest says.

    Args:
        file: the shard. Its size is ``shard.bytes``.
        shard: its record.
        token_bytes: bytes of a token id.

    Raises:
        InputError: if the file is too small.
    """
    needed = 8 * (shard.windows + 1) + 12 * shard.segments + token_bytes * shard.tokens
    if needed > shard.bytes:
        raise InputError(
            f"shard {file} has {shard.bytes} bytes, and the {shard.windows} windows, {shard.segments} segments and "
            f"{shard.tokens} tokens of the manifest need {needed}: {AGAIN}"
        )


def shard_name(split: str, index: int) -> str:
    """Return the file name of a split's shard. ``index`` is from 0. A name of this form stays inside the folder."""
    return f"{split}-{index:05d}.safetensors"


Rule = tuple[str, bool, str]
"""The key with its value, whether the value is possible, and the possible values."""


def _check(file: Path, rules: Sequence[Rule] | Iterator[Rule]) -> None:
    for value, is_possible, must in rules:
        if not is_possible:
            raise InputError(f"{file}: {value}, {must}: {AGAIN}")


def _split_rules(split: str, record: SplitRecord, window: int) -> Iterator[Rule]:
    key = f"splits.{split}"
    for name in ("windows", "tokens", "targets", "documents"):
        number = getattr(record, name)
        yield f"{key}.{name} is {number}", number > 0, "it is above 0"
    windows, documents = record.windows, record.documents
    yield f"{key}.windows is {windows}", windows * window < MOST_INPUTS, "a split has less than 2^53 tokens"
    yield f"{key}.documents is {documents}", documents <= record.tokens, "every document has a token"
    counts, buckets = len(record.bucket_counts), len(Buckets(window))
    needed = f"a window of {window} tokens has {buckets} buckets"
    yield f"{key}.bucket_counts has {counts} numbers", counts == buckets, needed
    yield from _name_rules(split, record)
    for index, shard in enumerate(record.shards):
        windows = shard.windows
        is_possible = 0 < windows <= shard.segments
        yield f"{key}.shards[{index}].windows is {windows}", is_possible, f"the shard has {shard.segments} segments"


def _name_rules(split: str, record: SplitRecord) -> Iterator[Rule]:
    yield f"splits has {split!r:.60}", split in SPLITS, f"it has {' and '.join(SPLITS)}"
    for index, shard in enumerate(record.shards):
        name = shard_name(split, index)
        yield f"splits.{split}.shards[{index}].file is {shard.file!r:.60}", shard.file == name, f"it is {name}"


def _sums(record: SplitRecord, window: int, *, masked: bool) -> Iterator[tuple[str, int, int]]:
    """Yield numbers that follow from other numbers of the split: the name, the sum, and the number in the manifest."""
    targets = sum(record.bucket_counts)
    yield "windows", sum(shard.windows for shard in record.shards), record.windows
    # Without a mask every input has a target. Three numbers are then equal, and the error names the different number.
    if not masked and record.targets == record.tokens:
        yield "bucket_counts", targets, record.targets
    yield "targets", targets, record.targets
    yield "tokens", max(targets, record.tokens) if masked else targets, record.tokens
    yield "padding", record.windows * window - record.tokens, record.padding
