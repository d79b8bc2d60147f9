import json
from pathlib import Path

import numpy as np
import pytest

from exact_titan.cli import main
from exact_titan.dataset.dataset import PackedDataset
from exact_titan.errors import InputError
from exact_titan.packing import pack
from exact_titan.reports.window import place_report, window_report, window_summary
from exact_titan.sampling.mixture import Mixture
from exact_titan.sampling.run_order import RunOrder
from tests.support import word_tokenizer

LENGTHS = (40, 100, 10, 150)  # words. Each document has one token more, </s>


def words(document: int) -> list[str]:
    return [str(1 + (7 * document + word) % 250) for word in range(LENGTHS[document])]


def packed(folder: Path, policy: str) -> Path:
    folder.mkdir(exist_ok=True)
    word_tokenizer(folder / "tokenizer.json", 256)
    lines = (json.dumps({"text": " ".join(words(document))}) + "\n" for document in range(len(LENGTHS)))
    (folder / "d.jsonl").write_text("".join(lines))
    pack([folder / "d.jsonl"], tokenizer=folder, seq_len=64, out=folder / "packed", policy=policy)
    return folder / "packed"


def test_a_window_of_concat(tmp_path):
    folder = packed(tmp_path, "concat")
    assert window_report(folder, 2).splitlines() == [
        f"{folder}, train: window 2 of 0 … 4, policy concat",
        "64 inputs, 0 of them padding; segments: 3",
        "",
        "== segment 0: inputs 0 … 11 (12), document 1, tokens 88 … 100 of 101, cut: it begins before this segment",
        " ".join([*words(1)[88:], "</s>"]),
        "",
        "== segment 1: inputs 12 … 21 (10), document 2, tokens 0 … 10 of 11, whole",
        " ".join([*words(2), "</s>"]),
        "",
        "== segment 2: inputs 22 … 63 (42), document 3, tokens 0 … 42 of 151, cut: it goes on after this segment",
        " ".join(words(3)[:43]),
    ]
    assert "tokens 42 … 106 of 151, cut: it begins before and goes on after this segment" in window_report(folder, 3)


def test_a_padded_window_of_best_fit_with_a_documents_rest(tmp_path):
    """The rests have 36 and 22 inputs, the documents have 40 and 10. The windows hold 40 with 22, and 36 with 10."""
    folder = packed(tmp_path, "best_fit")
    report = window_report(folder, 3)
    assert "64 inputs, 2 of them padding; segments: 2" in report
    assert "document 0, tokens 0 … 40 of 41, whole" in report
    assert "document 3, tokens 128 … 150 of 151, cut: it begins before this segment" in report
    assert " ".join([*words(3)[128:], "</s>"]) in report


@pytest.mark.parametrize("k", [-1, 5])
def test_a_missing_window(tmp_path, k):
    folder = packed(tmp_path, "concat")
    with pytest.raises(InputError, match=rf"^window {k}: {folder} has the windows 0 … 4 in its split train$"):
        window_report(folder, k)


def test_lengths_of_other_documents_are_refused(tmp_path):
    folder = packed(tmp_path, "concat")
    np.save(folder / "train-lengths.npy", np.array([41, 100, 12, 151]))
    with pytest.raises(InputError, match=r"train-lengths\.npy does not fit the windows"):
        window_report(folder, 2)
    np.save(folder / "train-lengths.npy", np.array([2, 2, 2, 2]))
    with pytest.raises(InputError, match=r"train-lengths\.npy does not fit the manifest: its documents have 4 inputs"):
        window_report(folder, 2)


def test_a_summary_has_every_document_of_a_window_and_how_it_begins(tmp_path):
    dataset = PackedDataset(packed(tmp_path, "concat"))
    assert window_summary(dataset, 2) == (
        f"window 2 of {dataset.folder}: 3 documents, 12 tokens from {' '.join(words(1)[88:])!r}; "
        f"10 tokens from {' '.join(words(2))!r}; 42 tokens from {' '.join(words(3)[:12])!r}"
    )


def test_padding_is_not_a_document(tmp_path):
    dataset = PackedDataset(packed(tmp_path, "best_fit"))
    summaries = [window_summary(dataset, k) for k in range(len(dataset))]
    padded = [k for k in range(len(dataset)) if (dataset[k]["labels"] == -100).any()]
    assert len(padded) > 1
    assert sum(summary.count(" tokens from ") for summary in summaries) == sum(
        len(dataset[k]["cu_seqlens"]) - 1 - (k in padded) for k in range(len(dataset))
    )


def test_a_window_of_a_dataset_in_parts(tmp_path):
    word_tokenizer(tmp_path / "tokenizer.json", 256)
    (tmp_path / "source").mkdir()
    for document in range(len(LENGTHS)):
        (tmp_path / "source" / f"{document}.txt").write_text(" ".join(words(document)))
    folder = tmp_path / "packed"
    pack([tmp_path / "source"], tokenizer=tmp_path, seq_len=64, out=folder, part_bytes=1)
    assert PackedDataset(folder).record.parts == [1, 1, 1, 1]
    # Windows: document 0 alone, two of document 1, document 2 alone, three of document 3.
    assert "document 2, tokens 0 … 10 of 11, whole" in window_report(folder, 3)
    assert "document 3, tokens 128 … 150 of 151, cut: it begins before this segment" in window_report(folder, 6)


def test_a_window_of_a_mixture_is_that_of_the_run(tmp_path, capsys):
    one, other = packed(tmp_path / "one", "concat"), packed(tmp_path / "other", "best_fit")
    path = f"{one}=2,{other}=1"
    order = RunOrder(Mixture(path), seed=3, infinite=True)
    for place in (0, 1, 2, 50):
        index, k = order.window(place)
        folder = order.mixture.datasets[index].folder
        report = f"place {place} of a run on {path}, dataloader.seed 3\n{window_report(folder, k)}"
        assert place_report(path, place, seed=3) == report
        assert main(["window", path, str(place), "--seed", "3"]) == 0
        assert capsys.readouterr().out == f"{report}\n"


def test_a_window_of_datasets_without_weights(tmp_path):
    one, other = packed(tmp_path / "one", "concat"), packed(tmp_path / "other", "best_fit")
    first, second = (dataset.folder for dataset in Mixture(f"{one},{other}").datasets)
    last = len(PackedDataset(first)) + len(PackedDataset(second)) - 1
    assert window_report(second, len(PackedDataset(second)) - 1) in place_report(f"{one},{other}", last)
    for place in (-1, last + 1):
        with pytest.raises(InputError, match=rf"^window {place}: a run on .* has the places from 0 to {last} in its"):
            place_report(f"{one},{other}", place)
