from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from exact_titan.dataset import PackedDataset
from exact_titan.dataset.policies import POLICIES, lay_out
from exact_titan.errors import InputError
from exact_titan.exposure import Buckets
from exact_titan.packing import pack
from exact_titan.reports.policies import PolicyFigures, measure_policies, policy_table

pytest_plugins = ["tests.text_fixtures"]


@pytest.fixture(scope="module")
def packed(
    tmp_path_factory: pytest.TempPathFactory, word_tokenizer: Path, write_jsonl: Callable[[Path, list[str]], Path]
) -> dict[str, PackedDataset]:
    """The same 400 documents, packed with every policy."""
    folder = tmp_path_factory.mktemp("policies")
    draw = np.random.default_rng(0)
    texts = [" ".join(["7"] * int(length)) for length in draw.lognormal(3, 1.2, 400) + 1]
    source = write_jsonl(folder / "documents.jsonl", texts)
    for policy in POLICIES:
        options = {"tokenizer": word_tokenizer, "seq_len": 64, "policy": policy, "val_fraction": 0.1}
        pack([source], out=folder / policy, **options)
    return {policy: PackedDataset(folder / policy) for policy in POLICIES}


def test_the_figures_equal_packing_with_each_policy(packed: dict[str, PackedDataset]) -> None:
    for dataset in packed.values():
        for figures in measure_policies(dataset.folder, dataset.manifest, "train"):
            record = packed[figures.policy].record
            assert figures.counts.tolist() == record.bucket_counts
            assert (figures.windows, figures.padding) == (record.windows, record.padding)
            assert figures.documents == record.documents
            assert figures.padding_share == record.padding / (64 * record.windows)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_cut_document_has_several_segments(packed: dict[str, PackedDataset], policy: str) -> None:
    lengths = np.load(packed[policy].folder / "train-lengths.npy")
    segments = Counter(segment.document for window in lay_out(policy, 64, lengths) for segment in window)
    figures = PolicyFigures.measure(policy, 64, lengths)
    assert figures.cut == sum(number > 1 for number in segments.values())
    if policy == "best_fit":
        assert figures.cut == sum(lengths - 1 > 64)


def test_lengths_of_other_documents_are_refused(packed: dict[str, PackedDataset], tmp_path: Path) -> None:
    dataset = packed["concat"]
    lengths = np.load(dataset.folder / "train-lengths.npy")
    np.save(tmp_path / "train-lengths.npy", lengths + 1)
    with pytest.raises(InputError, match=r"train-lengths\.npy does not fit the manifest"):
        measure_policies(tmp_path, dataset.manifest, "train")


def test_table_by_hand() -> None:
    counts = [torch.tensor([60, 20, 15, 5]), torch.tensor([50, 20, 20, 10])]
    figures = [
        PolicyFigures("concat", window=64, documents=8, windows=2, cut=2, counts=counts[0]),
        PolicyFigures("best_fit", window=64, documents=8, windows=2, cut=1, counts=counts[1]),
    ]
    assert Buckets(64).labels() == ["0-7", "8-15", "16-31", "32-64"]
    lines = policy_table(figures, threshold=16).splitlines()
    assert [line.rsplit(maxsplit=2) for line in lines] == [
        ["targets, % of all".rjust(17), "concat", "best_fit"],
        ["0-7".rjust(17), "60.00", "50.00"],
        ["8-15".rjust(17), "20.00", "20.00"],
        ["16-31".rjust(17), "15.00", "20.00"],
        ["32-64".rjust(17), "5.00", "10.00"],
        ["tail (>= 16)".rjust(17), "20.00", "30.00"],
        ["windows".rjust(17), "2", "2"],
        ["documents cut".rjust(17), "2", "1"],
        ["documents cut, %".rjust(17), "25.00", "12.50"],
        ["padding, inputs".rjust(17), "28", "28"],
        ["padding, %".rjust(17), "21.88", "21.88"],
        ["utilisation, %".rjust(17), "78.12", "78.12"],
    ]
    assert len({len(line) for line in lines}) == 1, "columns are aligned"
