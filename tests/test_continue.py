"""Continued pretraining of a real model on real text, with the commands in README's "Continue a real model"."""

import gzip
import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from exact_titan.dataset import PackedDataset
from tests import warm_ranks
from tests.evaluation.suites.ruler.lengths import check_lengths
from tests.support import ROOT, torchrun

CONFIG = ROOT / "train_configs/SmolLM2-135M-2k.toml"


def pack(folder: Path, chapters: Path, seq_len: int) -> None:
    options = ["--tokenizer", "SmolLM2-135M", "--seq-len", seq_len, "--val-fraction", "0.003"]
    out = ["--out", f"packed/books-{seq_len}"]
    done = warm_ranks.run(0, "exact_titan.cli", "pack", chapters, *options, *out, cwd=folder)
    assert done.codes == [0], done.stderr


@torch.no_grad()
def cross_entropy(model_folder: Path, dataset: PackedDataset) -> float:
    """Return the mean cross-entropy of a dataset's targets, computed by transformers on each document separately."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    total, targets = 0.0, 0
    for window in (dataset[k] for k in range(len(dataset))):
        for start, end in zip(window["cu_seqlens"][:-1], window["cu_seqlens"][1:], strict=True):
            labels = window["labels"][start:end]
            if (labels != -100).any():
                logits = model(window["input"][None, start:end]).logits[0]
                total += F.cross_entropy(logits, labels, reduction="sum", ignore_index=-100).item()
                targets += int((labels != -100).sum())
    return total / targets


@pytest.mark.slow
def test_validation_cross_entropy_falls_and_transformers_finds_the_same_value_in_the_export(
    smollm2, book_chapters_file, tmp_path
):
    (tmp_path / "SmolLM2-135M").symlink_to(smollm2)
    # Half the README's window. The test then takes half the time.
    pack(tmp_path, book_chapters_file, 1024)
    options = ["--dataloader.dataset_path", "packed/books-1024", "--training.seq_len", "1024"]
    options += ["--loss.threshold", "256", "--training.steps", "4", "--validator.freq", "2"]
    done = torchrun(2, "-m", "exact_titan.train", "--config", str(CONFIG), *options, cwd=tmp_path, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr

    events = EventAccumulator(str(next((tmp_path / "outputs/SmolLM2-135M-2k-exact/tb").glob("*"))))
    events.Reload()
    validated = [event.value for event in events.Scalars("validation_metrics/loss")]
    windows = PackedDataset(tmp_path / "packed/books-1024", split="val")
    before = cross_entropy(smollm2, windows)
    after = cross_entropy(tmp_path / "SmolLM2-135M-books-exact", windows)
    assert len(validated) == 2
    assert before > validated[0] > validated[1]
    # The export is in bfloat16. The validation ran in float32.
    assert abs(after - validated[1]) < 0.02


@pytest.mark.slow
def test_exported_weights_equal_the_loaded_weights(smollm2, book_chapters_file, tmp_path):
    (tmp_path / "SmolLM2-135M").symlink_to(smollm2)
    with gzip.open(book_chapters_file, "rt") as chapters:
        (tmp_path / "chapters.jsonl").write_text("".join(itertools.islice(chapters, 40)))
    pack(tmp_path, tmp_path / "chapters.jsonl", 64)
    options = ["--dataloader.dataset_path", "packed/books-64", "--training.seq_len", "64", "--training.steps", "1"]
    options += ["--optimizer.lr", "0.0", "--loss.threshold", "16", "--export", "out", "--validator.no-enable"]
    done = warm_ranks.run(2, "exact_titan.train", "--config", CONFIG, *options, cwd=tmp_path)
    assert done.codes == [0, 0], done.stdout + done.stderr
    before, after = (load_file(folder / "model.safetensors") for folder in (smollm2, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = tokenizer("It was a dark and stormy night", return_tensors="pt").input_ids
    texts = [
        tokenizer.decode(AutoModelForCausalLM.from_pretrained(folder).generate(prompt, max_new_tokens=30)[0])
        for folder in (smollm2, tmp_path / "out")
    ]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_prompts_of_ruler_have_their_length(smollm2):
    check_lengths(smollm2, (1024, 4096, 32768))
