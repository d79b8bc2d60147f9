"""The windows in the proof are the windows that the dataloader reads."""

import dataclasses
import hashlib
from pathlib import Path

import pytest

from exact_titan import study_configs
from exact_titan.errors import InputError
from exact_titan.runs.run_record import RunRecord
from exact_titan.study.plan import plan, representatives
from exact_titan.study.spec import read_study
from exact_titan.study.windows import step_windows
from exact_titan.titan.loader import PackedDataLoader
from tests.study import toy
from tests.support import pack_lengths


@pytest.fixture(scope="module")
def record(dataset, tmp_path_factory) -> RunRecord:
    file = toy.write(tmp_path_factory.mktemp("windows"), dataset.folder, text=toy.ONE_STAGE)
    chosen = list(representatives(plan(read_study(file), Path("out"), where="x")).values())[:1]
    return study_configs.complete_records(chosen, nproc=1, where="x")[0]


def changed(record: RunRecord, fingerprint: str = "", **options: object) -> RunRecord:
    """Return the record with other options of the dataloader, and with another fingerprint."""
    config = {**record.config, "dataloader": {**record.config["dataloader"], **options}}
    data = {**record.data, "fingerprint": fingerprint or record.data["fingerprint"]}
    return dataclasses.replace(record, config=config, data=data)


@pytest.mark.parametrize(("seed", "infinite", "mixed"), [(0, True, False), (3, True, True), (0, False, False)])
def test_the_windows_are_those_of_the_dataloader(record, dataset, tmp_path, seed, infinite, mixed):
    path = str(dataset.folder)
    if mixed:
        other = pack_lengths(tmp_path, [100] * 20, seq_len=64, seed=3)
        path = f"{dataset.folder}=2,{other.folder}=1"
    loader = PackedDataLoader.Config(dataset_path=path, seed=seed, infinite=infinite).build(
        dp_world_size=1, dp_rank=0, seq_len=64, local_batch_size=1
    )
    found = step_windows(changed(record, loader.mixture.fingerprint, seed=seed, infinite=infinite, dataset_path=path))
    assert (found.steps, found.windows_per_step) == (4, 4)
    lines = []
    for step in range(1, 5):
        windows = [loader.window_at(place) for place in range(4 * (step - 1), 4 * step)]
        lines.append(f"{step}:" + ",".join(f"{one[0].manifest.fingerprint}/{one[1]}" for one in windows if one))
        numbers = [str(one[1]) for one in windows if one]
        assert [text.rpartition("/")[2] for text in found.shown[step].split()] == numbers
    assert found.sha256 == hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def test_the_windows_end_with_the_data(record, dataset):
    long = dataclasses.replace(
        record, config={**record.config, "training": {**record.config["training"], "steps": 999}}
    )
    assert step_windows(changed(long, infinite=False)).steps == -(-len(dataset) // 4)


def test_a_dataset_that_has_changed(record):
    with pytest.raises(InputError, match=r"has changed since .*put the old dataset back"):
        step_windows(changed(record, "ab" * 32))
