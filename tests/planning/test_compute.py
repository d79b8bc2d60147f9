import pytest

from exact_titan.errors import InputError
from exact_titan.planning.compute import Windows, plan_compute
from tests.support import pack_lengths

SHAPE = {"n_layers": 2, "n_heads": 3, "head_dim": 4}


def plan(**changes):
    known = {
        "steps": 10,
        "windows_per_step": 8,
        "seq_len": 100,
        "windows": Windows(5050.0, 1, ""),
        "flops_per_token": 1000,
        "computed_flops_per_token": 1000.0,
        "attention_forwards": 2,
        "shape": SHAPE,
    }
    return plan_compute(**{**known, **changes})


def test_pairs_and_documents_of_a_dataset_are_counted_from_its_windows(tmp_path):
    dataset = pack_lengths(tmp_path, [5, 200, 17, 3, 64, 90, 1, 33, 300], seq_len=64)
    pairs, documents = [], []
    for k in range(len(dataset)):
        window = dataset[k]
        # Every input except padding has a label. The input at position p sees p + 1 inputs.
        positions = window["positions"][window["labels"] != -100]
        pairs.append(int((positions + 1).sum()))
        documents.append(int((positions == 0).sum()))
    windows = Windows.of_dataset(dataset.folder, "train")
    assert windows.pairs == pytest.approx(sum(pairs) / len(pairs))
    assert windows.documents == max(documents)
    assert windows.source == str(dataset.folder)


def test_without_a_dataset_a_window_is_one_document():
    windows = Windows.unknown(16_384)
    assert windows.pairs == 16_384 * 16_385 // 2
    assert windows.source == ""


def test_a_folder_without_a_dataset_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a packed dataset"):
        Windows.of_dataset(tmp_path, "train")


def test_flops_and_tokens():
    compute = plan()
    assert compute.tokens_per_step == 800
    assert compute.tokens == 8000
    assert compute.matmul_flops == 800 * 1000
    assert compute.attention_flops == 12 * 2 * 3 * 4 * 5050 * 8
    assert compute.flops_per_step == compute.matmul_flops + compute.attention_flops
    assert compute.recomputed_flops == 0


def test_recomputation_is_counted_separately():
    compute = plan(computed_flops_per_token=1250.0, attention_forwards=4)
    assert compute.flops_per_step == plan().flops_per_step
    assert compute.recomputed_flops == pytest.approx(800 * 250 + compute.attention_flops / 3)


def test_seconds():
    compute = plan()
    assert compute.seconds_per_step(nproc=8, peak_flops=1e6, mfu=0.5) == pytest.approx(compute.flops_per_step / 4e6)
