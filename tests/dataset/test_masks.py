"""Labels without a loss, format 3: every policy, cut documents, several shards."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from exact_titan.dataset import Manifest, PackedDataset
from exact_titan.dataset.lengths import read_lengths, read_unsupervised, unsupervised_file
from exact_titan.dataset.manifest import SftRecord, SourceRecord
from exact_titan.dataset.policies import POLICIES
from exact_titan.dataset.shards import Shard, write_shard
from exact_titan.dataset.verify import verify
from exact_titan.dataset.writer import SplitWriter
from exact_titan.documents.tokenizer import DocumentTokenizer
from exact_titan.errors import InputError
from exact_titan.exposure import Buckets, effective_context
from exact_titan.reports.policies import PolicyFigures, measure_policies
from exact_titan.reports.window import window_report
from tests.support import word_tokenizer as write_word_tokenizer

EOS = 0


def write_dataset(
    folder: Path, documents: list[tuple[list[int], int]], *, window: int, policy: str, shard_tokens: int = 2**20
) -> PackedDataset:
    """Write documents, each with a number of first labels without a loss, as a dataset of format 3."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer").mkdir()
    write_word_tokenizer(folder / "tokenizer/tokenizer.json", 4000)
    tokenizer = DocumentTokenizer(folder / "tokenizer")
    writer = SplitWriter(folder, "train", window, tokenizer.dtype, shard_tokens, policy, masked=True)
    for ids, unsupervised in documents:
        writer.add(np.array(ids, dtype=tokenizer.dtype), unsupervised)
    record = writer.finish()
    assert record is not None
    tokens = sum(len(ids) for ids, _ in documents)
    Manifest(
        sources=[SourceRecord("rows", 1, 1, "", len(documents), tokens, {})],
        tokenizer=tokenizer.record,
        window=window,
        policy=policy,
        token_dtype=str(tokenizer.dtype),
        val_fraction=0.0,
        splits={"train": record},
        sft=SftRecord("dolly", "", len(documents), []),
    ).write(folder)
    return PackedDataset(folder)


@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None, max_examples=12)
@given(
    documents=st.lists(st.tuples(st.integers(2, 40), st.integers(0, 100)), min_size=1, max_size=20),
    window=st.integers(2, 24),
    shard_tokens=st.integers(1, 90),
)
@example(documents=[(9, 7)], window=8, shard_tokens=1)
@example(documents=[(40, 38), (40, 20)], window=8, shard_tokens=8)  # cut inside the prompt
def test_agrees_with_the_definition(
    tmp_path_factory: pytest.TempPathFactory,
    policy: str,
    documents: list[tuple[int, int]],
    window: int,
    shard_tokens: int,
) -> None:
    # Every token except the ends has its own id. A label is therefore known by its input.
    supervised: dict[int, int] = {}
    unsupervised: set[int] = set()
    written, first = [], 1
    for length, percent in documents:
        ids = [*range(first, first + length - 1), EOS]
        first += length - 1
        prompt = percent * (length - 2) // 100
        written.append((ids, prompt))
        unsupervised |= set(ids[:prompt])
        supervised |= dict(zip(ids[prompt:-1], ids[prompt + 1 :], strict=True))
    folder = tmp_path_factory.mktemp("masks") / "out"
    dataset = write_dataset(folder, written, window=window, policy=policy, shard_tokens=shard_tokens)

    counts, found, masked = torch.zeros(len(Buckets(window)), dtype=torch.int64), {}, set()
    for k in range(len(dataset)):
        row = dataset[k]
        for token, label in zip(row["input"].tolist(), row["labels"].tolist(), strict=True):
            if label != -100:
                found[token] = label
            elif token != 0:  # padding
                masked.add(token)
        context = effective_context(row["positions"])[row["labels"] != -100]
        counts += torch.bincount(Buckets(window).index(context), minlength=len(counts))
    assert found == supervised
    assert masked == unsupervised
    assert dataset.counts.tolist() == counts.tolist()
    assert dataset.record.targets == len(supervised)
    assert dataset.record.tokens == len(supervised) + len(unsupervised)
    assert dataset.joint_counts().sum(1).tolist() == counts.tolist()
    assert [f"{len(supervised)} targets" in line for line in verify(folder)][-1]
    this = next(one for one in measure_policies(folder, dataset.manifest, "train") if one.policy == policy)
    assert this.counts.tolist() == counts.tolist()
    assert this.padding == dataset.record.padding


DOCUMENTS = [([1, 2, 3, 4, EOS], 2), ([5, 6, EOS], 0), ([7, 8, 9, 10, 11, 12, 13, 14, 15, 16, EOS], 9)]


def test_windows_by_hand(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "out", DOCUMENTS, window=8, policy="concat")
    assert dataset[0]["labels"].tolist() == [-100, -100, 4, EOS, 6, EOS, -100, -100]
    assert dataset[0]["input"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert dataset[0]["positions"].tolist() == [0, 1, 2, 3, 0, 1, 0, 1]
    assert dataset[1]["labels"].tolist() == [-100] * 7 + [EOS]
    assert (dataset.record.targets, dataset.record.tokens, dataset.counts.tolist()) == (5, 16, [5])
    # The buckets of the packed positions: the joint counts have the same targets.
    assert int(dataset.joint_counts().sum()) == 5
    assert PolicyFigures.measure("concat", 8, np.array([5, 3, 11]), [], np.array([2, 0, 9])).counts.sum() == 5
    report = window_report(tmp_path / "out", 0)
    assert "tokens 0 … 4 of 5, whole, 2 labels without a loss\n1 2 3 4" in report
    assert "tokens 0 … 2 of 3, whole\n5 6" in report
    assert "tokens 0 … 2 of 11, cut: it goes on after this segment, 2 labels without a loss\n7 8" in report


def test_verify_finds_a_prompt_with_a_loss(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_dataset(folder, DOCUMENTS, window=8, policy="best_fit")
    file = folder / "train-00000.safetensors"
    shard = Shard(file)
    names = ("tokens", "segment_start", "segment_length", "window_segments", "segment_unsupervised")
    arrays = {name: getattr(shard, name).copy() for name in names}

    def sign(arrays: dict[str, np.ndarray]) -> None:
        file.unlink()
        size, sha256 = write_shard(file, arrays)
        manifest = Manifest.read(folder)
        record = manifest.splits["train"]
        shards = [dataclasses.replace(record.shards[0], bytes=size, sha256=sha256)]
        dataclasses.replace(manifest, splits={"train": dataclasses.replace(record, shards=shards)}).write(folder)

    sign(arrays | {"segment_unsupervised": np.zeros_like(arrays["segment_unsupervised"])})
    with pytest.raises(InputError, match="its labels without a loss are those of the documents"):
        list(verify(folder))
    sign({name: array for name, array in arrays.items() if name != "segment_unsupervised"})
    with pytest.raises(InputError, match="only the shards of a dataset of instructions have labels without a loss"):
        list(verify(folder))
    sign(arrays)
    list(verify(folder))

    lengths = read_lengths(folder, "train", 3)
    assert read_unsupervised(folder, "train", lengths).tolist() == [2, 0, 9]
    for wrong, message in (([2, 0, 10], "a document without a supervised label"), ([2, 0], r"int64 \[2\]")):
        np.save(unsupervised_file(folder, "train"), wrong)
        with pytest.raises(InputError, match=message):
            list(verify(folder))
    unsupervised_file(folder, "train").unlink()
    with pytest.raises(InputError, match=r"train-unsupervised\.npy is missing"):
        list(verify(folder))
