"""Training on instructions: the loss of the responses, ranks, resume, mixtures."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from exact_titan.dataset import PackedDataset
from exact_titan.documents.templates import dolly_prompt
from exact_titan.packing import pack
from exact_titan.runs.export import export
from exact_titan.runs.target_losses import read_target_losses
from tests.support import ROOT
from tests.titan.test_training import argv, losses, record

pytest_plugins = ["tests.text_fixtures"]
pytestmark = pytest.mark.slow

WINDOW = 256
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "sleeps"]


def rows(number: int) -> list[dict[str, str]]:
    draw = random.Random(number)

    def text(most: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randrange(1, most)))

    return [{"instruction": text(6), "context": text(9), "response": text(20)} for _ in range(number)]


@pytest.fixture(scope="module")
def instructions(chat_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    """Sixteen rows in windows of 256 tokens, some of them for validation. Most of the inputs are prompts."""
    folder = tmp_path_factory.mktemp("instructions")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(16)))
    pack(
        [folder / "rows.jsonl"],
        tokenizer=chat_tokenizer,
        seq_len=WINDOW,
        out=folder / "packed",
        template="dolly",
        val_fraction=0.3,
    )
    return PackedDataset(folder / "packed")


@pytest.fixture(scope="module")
def documents(chat_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    folder = tmp_path_factory.mktemp("documents")
    text = " ".join(random.Random(0).choice(WORDS) for _ in range(600))
    (folder / "text.jsonl").write_text(json.dumps({"text": text}) + "\n")
    pack([folder / "text.jsonl"], tokenizer=chat_tokenizer, seq_len=WINDOW, out=folder / "packed")
    return PackedDataset(folder / "packed")


@pytest.fixture(scope="module")
def runs(instructions: PackedDataset, documents: PackedDataset, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Continued pretraining on one rank, and then the config sft.toml on one and two ranks."""
    folder = tmp_path_factory.mktemp("runs")
    saved = ["--checkpoint.enable", "--checkpoint.interval", "2", "--checkpoint.async_mode", "disabled"]
    whole = len(instructions)

    def sft(name: str, *options: str, data: str = str(instructions.folder), batch: int = whole, steps: int = 4) -> dict:
        return {
            "name": name,
            "trainer": "exact",
            "argv": [
                *["--config", str(ROOT / "train_configs/sft.toml"), "--model", "", "--start_from", str(folder / "cpt")],
                *["--dump_folder", str(folder / name), "--dataloader.dataset_path", data],
                *["--training.seq_len", str(WINDOW), "--training.steps", str(steps), "--training.dtype", "float32"],
                *["--training.mixed_precision_param", "float32", "--training.global_batch_size", str(batch)],
                *["--optimizer.lr", "1e-3", "--lr_scheduler.warmup_steps", "1", "--metrics.log_freq", "1"],
                *["--metrics.no-enable-tensorboard", "--loss.threshold", "64", *saved, *options],
            ],
        }

    cpt = {"name": "cpt", "trainer": "exact", "argv": argv(documents, folder / "cpt", *saved, steps=2)}
    mixed = f"{instructions.folder}=1,{documents.folder}=1"
    no_validation = "--validator.no-enable"
    one = [
        cpt,
        sft("whole", "--validator.freq", "1", steps=1),
        sft("mixed on 1", no_validation, data=mixed, batch=4),
    ]
    two = [
        sft("mixed on 2", no_validation, data=mixed, batch=4),
        sft("unbroken", no_validation, batch=2),
        sft("resumed", no_validation, batch=2) | {"end_after": 2},
    ]
    results = record(1, folder / "one", *one) | record(2, folder / "two", *two)
    results |= {"continued": record(2, folder / "again", sft("resumed", no_validation, batch=2))["resumed"]}
    return results | {"folder": folder}


def naive_loss(model: torch.nn.Module, tokenizer: Path, rows: list[dict[str, str]]) -> tuple[float, int]:
    """Return the mean cross-entropy of the tokens of the responses, each row alone, and the number of these tokens."""
    encode = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).encode
    total, targets = 0.0, 0
    for row in rows:
        prompt = encode(dolly_prompt(row["instruction"], row["context"])).ids
        response = [*encode(f"{row['response']}\n\n### End", add_special_tokens=False).ids, 1]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *response]])).logits[0].double().log_softmax(-1)
        for place, token in enumerate(response, len(prompt)):
            total -= float(logits[place - 1, token])
            targets += 1
    return total / targets, targets


def of_split(dataset: PackedDataset, tokenizer: Path) -> list[dict[str, str]]:
    """Return the rows of a split: a row belongs to the split that has the ids of its response."""
    library = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    text = " ".join(library.decode(dataset[k]["input"].tolist()) for k in range(len(dataset)))
    return [row for row in rows(16) if f"{row['context']}\n\n### Response:\n{row['response']}\n\n### End" in text]


def test_the_loss_is_the_mean_over_the_tokens_of_the_responses(runs, instructions, chat_tokenizer):
    train, val = instructions, PackedDataset(instructions.folder, "val")
    trained, validated = of_split(train, chat_tokenizer), of_split(val, chat_tokenizer)
    assert len(trained) + len(validated) == 16
    assert train.record.targets < train.record.tokens / 2

    export(runs["folder"] / "cpt", runs["folder"] / "hf", dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(runs["folder"] / "hf")
    loss, targets = naive_loss(model, chat_tokenizer, trained)
    assert targets == train.record.targets
    # The first step trains on all windows, with the weights of the continued pretraining.
    assert losses(runs["whole"])[0][0] == pytest.approx(loss, rel=1e-5)

    # The validation follows the step. Its file has the targets of the responses only.
    found = read_target_losses(runs["folder"] / "whole", 1)
    assert found is not None
    assert len(found.cross_entropy) == naive_loss(model, chat_tokenizer, validated)[1] == val.record.targets
    assert np.bincount(found.bucket, minlength=len(val.counts)).tolist() == val.counts.tolist()
    assert sorted(set(found.document.tolist())) == list(range(len(validated)))


def test_one_and_two_ranks_have_the_same_losses(runs):
    one, two = losses(runs["mixed on 1"]), losses(runs["mixed on 2"])
    assert len(one) == 4
    for (loss, norm), (other_loss, other_norm) in zip(one, two, strict=True):
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert other_norm == pytest.approx(norm, rel=1e-4)


def test_a_resumed_run_equals_an_unbroken_run(runs):
    assert [step["step"] for step in runs["unbroken"]["steps"]] == [1, 2, 3, 4]
    assert [*runs["resumed"]["steps"], *runs["continued"]["steps"]] == runs["unbroken"]["steps"]
    assert losses(runs["unbroken"])[-1][0] < losses(runs["unbroken"])[0][0]
