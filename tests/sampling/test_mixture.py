import dataclasses
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from exact_titan.dataset import PackedDataset
from exact_titan.errors import InputError
from exact_titan.sampling.mixture import Mixture
from tests.support import pack_lengths


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Two datasets in windows of 64: one of short documents, one of long documents."""
    folder = tmp_path_factory.mktemp("mixture")
    short = pack_lengths(folder / "short", [20] * 80, seq_len=64, val_fraction=0.2, seed=1)
    long = pack_lengths(folder / "long", [200] * 20, seq_len=64, val_fraction=0.2, seed=2)
    return short.folder, long.folder


def rewritten(folder: Path, out: Path, **changes) -> Path:
    """Make a copy of a dataset with a changed manifest."""
    shutil.copytree(folder, out)
    dataset = PackedDataset(out)
    tokenizer = changes.pop("tokenizer", {})
    record = dataclasses.replace(dataset.manifest.tokenizer, **tokenizer)
    dataclasses.replace(dataset.manifest, tokenizer=record, **changes).write(out)
    return out


def test_one_dataset_is_itself(folders):
    dataset, mixture = PackedDataset(folders[0]), Mixture(str(folders[0]))
    assert [mixture[place] for place in (0, 1, 10**9)] == [(0, 0), (0, 1), (0, 10**9)]
    assert mixture.fingerprint == dataset.manifest.fingerprint
    assert mixture.counts.dtype == np.int64
    assert np.array_equal(mixture.counts, dataset.counts)
    assert mixture.places_once() == len(dataset)


def test_the_order_in_which_they_are_named_and_the_scale_of_the_weights_do_not_matter(folders):
    short, long = folders
    one, other = Mixture(f"{short}=3,{long}=1"), Mixture(f"{long}=0.25, {short}=0.75")
    assert one.fingerprint == other.fingerprint
    assert [dataset.folder for dataset in one.datasets] == [dataset.folder for dataset in other.datasets]
    assert [one[place] for place in range(100)] == [other[place] for place in range(100)]


def test_each_dataset_has_its_weight(folders):
    short, long = folders
    mixture = Mixture(f"{short}=3,{long}=1")
    turns = [mixture[place] for place in range(4000)]
    by_folder = {dataset.folder: index for index, dataset in enumerate(mixture.datasets)}
    assert [turn for index, turn in turns if index == by_folder[short]] == list(range(3000))
    assert [turn for index, turn in turns if index == by_folder[long]] == list(range(1000))


def test_joint_counts_are_those_to_expect_of_the_mixture(folders):
    """The rows are the contexts, as in ``counts``. The columns are the packed positions, and most windows are full."""
    for path in (str(folders[0]), f"{folders[0]}=3,{folders[1]}=1", f"{folders[0]},{folders[1]}"):
        mixture = Mixture(path)
        joint = mixture.joint_counts
        np.testing.assert_allclose(joint.sum(1), mixture.counts, atol=0.5)
        windows = sum(len(dataset) for dataset in mixture.datasets)
        # Targets 32 to 64 of a window are in the last bucket. Only the last window of a dataset has padding.
        assert 33 * (windows - 4) < joint.sum(0)[-1] <= 33 * windows
        assert joint.sum(1)[-1] < 0.9 * joint.sum(0)[-1]


def test_counts_are_those_to_expect_of_the_mixture(folders):
    short, long = PackedDataset(folders[0]), PackedDataset(folders[1])
    counts = Mixture(f"{folders[0]}=3,{folders[1]}=1").counts
    total = len(short) + len(long)
    for found, a, b in zip(counts.tolist(), short.counts.tolist(), long.counts.tolist(), strict=True):
        expected = total * (Fraction(3, 4) * Fraction(a, len(short)) + Fraction(1, 4) * Fraction(b, len(long)))
        assert abs(found - expected) <= Fraction(1, 2)
    # Only the long documents reach the last bucket.
    assert short.counts[-1] == 0 < counts[-1] < long.counts[-1]


def test_without_weights_one_comes_after_another(folders):
    mixture = Mixture(f"{folders[0]},{folders[1]}", split="val")
    lengths = [len(dataset) for dataset in mixture.datasets]
    places = [mixture[place] for place in range(mixture.places_once())]
    assert places == [(index, window) for index, length in enumerate(lengths) for window in range(length)]
    assert np.array_equal(mixture.counts, mixture.datasets[0].counts + mixture.datasets[1].counts)


@pytest.mark.parametrize("weights", [("", ""), ("=3", "=1"), ("=2/7", "=5")])
def test_the_places_of_a_step_have_the_datasets_and_turns_of_each_place(folders, weights):
    mixture = Mixture(f"{folders[0]}{weights[0]},{folders[1]}{weights[1]}")
    places = np.arange(5, mixture.places_once())
    indices, turns = mixture.turns_at(places)
    assert list(zip(indices.tolist(), turns.tolist(), strict=True)) == [mixture[place] for place in places.tolist()]


def test_once_by_weight_ends_before_a_window_comes_again(folders):
    mixture = Mixture(f"{folders[0]}=3,{folders[1]}=1")
    assert mixture.shares is not None
    end = mixture.places_once()
    lengths = [len(dataset) for dataset in mixture.datasets]
    turns = mixture.shares.turns(end)
    assert all(turn <= length for turn, length in zip(turns, lengths, strict=True))
    index, turn = mixture[end]
    assert turn == lengths[index]


def test_what_changed_is_named(folders):
    short, long = folders
    first = Mixture(f"{short}=3,{long}=1")
    assert f"share 1/2 of {long}, not 1/4" in first.difference(Mixture(f"{short}=1,{long}=1").fingerprint)
    assert f"share 1 of {short}, not 3/4" in first.difference(Mixture(str(short)).fingerprint)
    gone = Mixture(str(short)).difference(first.fingerprint)
    assert f"share 1/4 of a dataset with fingerprint {PackedDataset(long).manifest.fingerprint}, not 0" in gone


def test_two_tokenizers_are_refused(folders, tmp_path):
    other = rewritten(folders[1], tmp_path / "other", tokenizer={"sha256": "f" * 64, "name": "another"})
    with pytest.raises(InputError, match="were packed with different tokenizers") as caught:
        Mixture(f"{folders[0]}=1,{other}=1")
    for part in (str(folders[0]), str(other), "another, ffffffffffff…"):
        assert part in str(caught.value)


def test_two_window_lengths_are_refused(folders, tmp_path):
    other = pack_lengths(tmp_path, [100] * 5, seq_len=32).folder
    with pytest.raises(InputError, match=f"{folders[0]} is packed in windows of 64 tokens, {other} in windows of 32"):
        Mixture(f"{folders[0]}=1,{other}=1")


def test_a_dataset_that_appears_twice_is_refused_also_as_a_copy(folders, tmp_path):
    copy = Path(shutil.copytree(folders[0], tmp_path / "copy"))
    for twice in (folders[0], copy):
        with pytest.raises(InputError, match=f"{folders[0]} and {twice} are the same packed dataset"):
            Mixture(f"{folders[0]}=1,{folders[1]}=1,{twice}=1")


def test_too_fine_a_ratio_is_refused(folders):
    with pytest.raises(InputError, match=r"the shares are whole only every 10,000,000 places.*round the weights"):
        Mixture(f"{folders[0]}=0.9999999,{folders[1]}=0.0000001")


def test_a_missing_dataset_is_named(folders, tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path / 'none'}: no such folder"):
        Mixture(f"{folders[0]}=1,{tmp_path / 'none'}=1")
