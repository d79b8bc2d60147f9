"""A folder of questions in the schema of the six tasks, and a byte tokenizer for their texts."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

NOUNS = ("river", "lamp", "baker", "stone", "garden", "engine", "violin", "harbour", "pencil", "glacier")


def write_questions(folder: Path) -> Path:
    """Write the questions. The rows of a split for few-shot examples are equal, so that every draw gives one prompt."""
    for place, subject in enumerate(("anatomy", "virology")):
        write_rows(folder / "mmlu" / subject / "test.jsonl", [_mmlu(k + place) for k in range(3)])
        write_rows(folder / "mmlu" / subject / "dev.jsonl", [_mmlu(k + 5) for k in range(5)])
    makers = {
        "arc_challenge": (_arc, "test"),
        "hellaswag": (_hellaswag, "validation"),
        "winogrande": (_winogrande, "validation"),
        "piqa": (_piqa, "validation"),
        "gsm8k": (_gsm8k, "test"),
    }
    for task, (maker, split) in makers.items():
        write_rows(folder / task / f"{split}.jsonl", [maker(k) for k in range(4)])
        write_rows(folder / task / "train.jsonl", [maker(9)] * 3)
    return folder


def write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_byte_tokenizer(folder: Path) -> None:
    """Write ``tokenizer.json`` with one token a byte, and its configuration for transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: k for k, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _mmlu(k: int) -> dict[str, Any]:
    return {"question": f" What is a {NOUNS[k]}?", "choices": [f"{n} {k}" for n in NOUNS[:4]], "answer": k % 4}


def _arc(k: int) -> dict[str, Any]:
    labels = ["A", "B", "C", "D", "E"][: 3 + k % 3]
    texts = [f"{'very ' * place}{NOUNS[(k + place) % 10]}" for place in range(len(labels))]
    return {"question": f"Why {NOUNS[k]}?", "choices": {"text": texts, "label": labels}, "answerKey": labels[k % 3]}


def _hellaswag(k: int) -> dict[str, Any]:
    endings = [f"[step] takes the {noun}{' away' * place}." for place, noun in enumerate(NOUNS[k : k + 4] or NOUNS[:4])]
    row = {"ctx_a": f"[header] The {NOUNS[k]} waits. [title]Then", "ctx_b": "a man", "activity_label": "Waiting"}
    return row | {"endings": (endings * 4)[:4], "label": str(k % 4)}


def _winogrande(k: int) -> dict[str, Any]:
    sentence = f"The {NOUNS[k]} did not fit into the bag because the _ was too big."
    return {"sentence": sentence, "option1": NOUNS[k], "option2": "bag", "answer": str(1 + k % 2)}


def _piqa(k: int) -> dict[str, Any]:
    return {
        "goal": f"Clean a {NOUNS[k]}.",
        "sol1": "Use water and a cloth.",
        "sol2": f"Use {NOUNS[k]}.",
        "label": k % 2,
    }


def _gsm8k(k: int) -> dict[str, Any]:
    return {"question": f"Two boxes of {k} pens. How many?", "answer": f"2 * {k} = <<2*{k}={2 * k}>>\n#### {2 * k:,}"}
