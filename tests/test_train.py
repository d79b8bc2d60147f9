"""``python -m exact_titan.train`` with wrong input: one line, exit code 2, no files on the disk."""

import shutil
from pathlib import Path

import pytest

from exact_titan import train
from tests import warm_agent, warm_ranks
from tests.support import pack_lengths


def arguments(dataset, folder: Path, *options: str) -> list[str]:
    return [
        *["--config", "from_scratch", "--dump_folder", str(folder / "out")],
        *["--dataloader.dataset_path", str(dataset.folder), "--training.seq_len", str(dataset.window), *options],
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--training.seq_len", "128"], "is packed in windows of 64 tokens, but training.seq_len is 128"),
        (["--loss.threshold", "100"], "loss.threshold is 100: with a window of 64 tokens"),
        (["--loss.alpha", "-1"], "loss.alpha is -1.0"),
        (["--loss.num_chunks", "7"], "loss.num_chunks is 7: it must divide training.seq_len (64)"),
        (["--architecture.vocab_size", "100"], "the model's vocabulary has 100 ids, but the dataset's tokenizer 256"),
        (
            ["--parallelism.pipeline_parallel_degree", "2"],
            "parallelism.pipeline_parallel_degree is 2: torchtitan hands",
        ),
        (["--parallelism.tensor_parallel_degree", "2"], "parallelism.tensor_parallel_degree is 2: it must be 1 or"),
        (["--parallelism.context_parallel_degree", "2"], "parallelism.context_parallel_degree is 2: it must be 1"),
        (
            ["--parallelism.expert_parallel_degree", "0"],
            "parallelism.expert_parallel_degree is 0: the models here have",
        ),
        (
            ["--parallelism.data_parallel_replicate_degree", "2"],
            "parallelism.data_parallel_replicate_degree is 2, data_parallel_shard_degree -1: their product must",
        ),
        (["--parallelism.data_parallel_shard_degree", "0"], "data_parallel_shard_degree 0: their product must be"),
        (["--training.enable_cpu_offload"], "training.enable_cpu_offload is on, but there is no GPU"),
        (["--hf_assets_path", "nowhere"], "hf_assets_path is 'nowhere': there is no such folder"),
        (
            ["--checkpoint.initial_load_in_hf"],
            "checkpoint.initial_load_in_hf is True, and the model is from scratch: name the folder with --model",
        ),
        (["--loss.num_chunks", "0"], "loss.num_chunks is 0: it must be 1 or more"),
        (["--comm.train_timeout_seconds", "-5"], "comm.train_timeout_seconds is -5: it must be 1 or more"),
        (["--training.gc_freq", "0"], "training.gc_freq is 0: it must be 1 or more"),
        (
            ["--architecture.ffn_dim", "100000000000000000000"],
            "architecture.ffn_dim is 100000000000000000000: no model",
        ),
        (["--architecture.rope_theta", "nan"], "architecture.rope_theta is nan: it must be more than 0"),
        (["--parallelism.spmd_backend", "spmd_types"], "parallelism.spmd_backend is spmd_types"),
        (["--dataloader.dataset_path", ""], "dataloader.dataset_path is empty"),
        (["--dataloader.dataset", "c4"], "dataloader.dataset is 'c4', but this option is for torchtitan's own"),
        (["--dataloader.dataset_path", "nowhere"], "nowhere: no such folder"),
        (["--model", "nowhere"], "model is 'nowhere': there is no such folder, and the known models are Qwen2.5-0.5B"),
        (["--start_from", "nowhere"], "nowhere: no such folder"),
        (["--dataloader.split", "test"], "has no split 'test': choose one of train, val"),
        (["--validator.dataloader.split", "test"], "has no split 'test' to validate on: pack with --val-fraction"),
        (["--loss.dataset_path", "nowhere"], "nowhere: no such folder"),
        (["--attention", "fa2"], "attention is fa2, but that needs a CUDA GPU"),
        (["--training.steps", "0"], "training.steps is 0"),
        (["--training.local_batch_size", "0"], "training.local_batch_size is 0"),
        (
            ["--training.local_batch_size", "2", "--training.global_batch_size", "3"],
            "training.global_batch_size is 3: it must be a multiple of training.local_batch_size (2)",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(dataset, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        train.main(arguments(dataset, tmp_path, *options))
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("exact_titan.train: error: ")
    assert message in printed
    assert printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("{one}=0,{two}=0", [], "the weights sum to 0"),
        ("{one}=3,{two}=1,{one}=2", [], "{one} and {one} are the same packed dataset"),
        ("{one}=3,{two}", [], "{two} has no weight"),
        ("{one},{two}", [], "to mix datasets, give each dataset a weight"),
        ("{one}=1,{two}=1", ["--training.seq_len", "128"], "is packed in windows of 64 tokens"),
        (
            "{one}=1,{two}=3",
            ["--training.steps", "100", "--training.global_batch_size", "8", "--dataloader.no-infinite"],
            "{one} has 108 of the 200 windows of its share, 92 too few",
        ),
    ],
)
def test_a_wrong_mixture_is_one_line_and_leaves_nothing(dataset, tmp_path, capsys, path, options, message):
    names = {"one": dataset.folder, "two": pack_lengths(tmp_path / "two", [120] * 10, seq_len=64).folder}
    path = path.format(**names)
    with pytest.raises(SystemExit) as stopped:
        train.main(arguments(dataset, tmp_path, "--dataloader.dataset_path", path, *options))
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert message.format(**names) in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_shard_cut_short_is_named(dataset, tmp_path, capsys):
    folder = shutil.copytree(dataset.folder, tmp_path / "packed")
    shard = folder / dataset.record.shards[0].file
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(SystemExit) as stopped:
        train.main(arguments(dataset, tmp_path, "--dataloader.dataset_path", str(folder)))
    assert stopped.value.code == 2
    assert f"shard {shard} is cut short or changed" in capsys.readouterr().err


def test_only_one_rank_prints_the_error_under_torchrun(dataset, tmp_path):
    given = ["-m", "exact_titan.train", *arguments(dataset, tmp_path, "--loss.alpha", "-1")]
    done = warm_agent.torchrun(2, *given, cwd=tmp_path)
    assert done.codes == [1]
    assert done.stderr.count("exact_titan.train: error: loss.alpha is -1.0") == 1
    assert "exitcode  : 2" in done.stderr


def test_help_lists_the_options(tmp_path):
    done = warm_ranks.run(0, "exact_titan.train", "--config", "from_scratch", "--help-all", cwd=tmp_path)
    assert done.codes == [0]
    for option in ("--loss.alpha", "--dataloader.dataset_path", "--optimizer.lr", "--architecture.dim"):
        assert option in done.stdout
