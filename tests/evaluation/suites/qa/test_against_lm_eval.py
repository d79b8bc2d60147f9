"""Accuracies and log-likelihoods equal those of lm-eval itself: its own prompts, model class, filters and metrics."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from exact_titan.evaluation.answers import Answer
from exact_titan.evaluation.engine_options import EngineOptions
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.options import QaOptions
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer
from exact_titan.evaluation.suites import Request, find_suite
from exact_titan.evaluation.suites.qa import contexts
from tests.evaluation.suites.qa.tiny_questions import write_byte_tokenizer, write_questions

pytestmark = pytest.mark.slow  # lm-eval's model class imports for seconds

ROOM = 12
SHOTS = {"mmlu": 5, "arc_challenge": 2, "hellaswag": 1, "winogrande": 2, "piqa": 0, "gsm8k": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers with a byte tokenizer, and questions of the six tasks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("lm_eval")
    write_byte_tokenizer(folder / "model")
    write_questions(folder / "questions")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=1024, initializer_range=0.5, bos_token_id=None, eos_token_id=256,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def of_lm_eval(folder: Path) -> dict[str, Any]:
    """The results of ``lm_eval.simple_evaluate`` on the same questions."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from datasets import Dataset, load_dataset
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    def member(name: str, task: str, shots: int) -> dict[str, Any]:
        def load(**_: Any) -> dict[str, Dataset]:
            files = (folder / "questions" / task).glob("*.jsonl")
            return {
                file.stem: load_dataset("json", data_files=str(file), split="train", cache_dir=str(folder / "cache"))
                for file in files
            }

        return {"task": name, "custom_dataset": load, "num_fewshot": shots, "validation_split": None} | (
            {"validation_split": "validation"} if task in ("hellaswag", "winogrande", "piqa") else {}
        )

    members = [member(task, task, shots) for task, shots in SHOTS.items() if task != "mmlu"]
    members += [member(f"mmlu_{subject}", f"mmlu/{subject}", SHOTS["mmlu"]) for subject in ("anatomy", "virology")]
    model = HFLM(str(folder / "model"), device="cpu", dtype="float32", batch_size=1)
    results = simple_evaluate(
        model,
        tasks=[{"group": "mine", "task": members}],
        gen_kwargs={"max_gen_toks": ROOM},
        bootstrap_iters=0,
        task_manager=contexts.task_manager(),
    )
    assert results is not None
    return results


@pytest.fixture(scope="module")
def ours(folder: Path) -> tuple[list[Example], dict[str, Answer]]:
    """Our examples, and the answers of the engine transformers."""
    from exact_titan.evaluation.engines.transformers import engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contexts, "ROOM", ROOM)
        tokenizer = PromptTokenizer(folder / "model")
        shots = tuple(f"{task}={number}" for task, number in SHOTS.items())
        options = QaOptions(folder=folder / "questions", questions=0, shots=shots)
        examples = list(find_suite("qa").prepare(Request(None, 1, 0, tokenizer, options)).examples)
    answers = engine(folder / "model", EngineOptions(device="cpu"))
    return examples, {one.id: given for one in examples for given in answers.answer([one])}


def test_log_likelihoods_and_answers_equal_those_of_lm_eval(ours: Any, of_lm_eval: dict[str, Any]) -> None:
    examples, answers = ours
    compared = 0
    for name, samples in of_lm_eval["samples"].items():
        task, _, subject = name.partition("_") if name.startswith("mmlu") else (name, "", "")
        for sample in samples:
            mine = [
                one
                for one in examples
                if (one.task, one.meta["row"], one.meta.get("subject", "")) == (task, sample["doc_id"], subject)
            ]
            if task == "gsm8k":
                assert answers[mine[0].id].text == sample["resps"][0][0]
            else:
                expected = [float(one[0][0]) for one in sample["resps"]]
                found = [value for one in mine for value in answers[one.id].logprobs]
                assert found == pytest.approx(expected, abs=1e-4), (name, sample["doc_id"])
            assert [one.prompt for one in mine] == list(dict.fromkeys(one[0] for one in sample["arguments"]))
            compared += len(mine)
    # lm-eval has a sample for each of its two filters of GSM8K.
    assert compared == len(examples) + 4


def test_accuracies_equal_those_of_lm_eval(ours: Any, of_lm_eval: dict[str, Any]) -> None:
    scores = find_suite("qa").score(*ours)
    results = of_lm_eval["results"]

    def mean(task: str, metric: str) -> float:
        values = [one.values[metric] for one in scores if one.task == task]
        return sum(values) / len(values)

    for task in ("arc_challenge", "hellaswag", "piqa"):
        assert mean(task, "accuracy") == pytest.approx(results[task]["acc,none"])
        assert mean(task, "accuracy_norm") == pytest.approx(results[task]["acc_norm,none"])
    assert mean("winogrande", "accuracy") == pytest.approx(results["winogrande"]["acc,none"])
    both = [results[f"mmlu_{subject}"]["acc,none"] for subject in ("anatomy", "virology")]
    assert mean("mmlu", "accuracy") == pytest.approx(sum(both) / 2)
    assert mean("gsm8k", "accuracy") == results["gsm8k"]["exact_match,strict-match"]
    assert mean("gsm8k", "accuracy_flexible") == results["gsm8k"]["exact_match,flexible-extract"]
    # The tiny model is neither always right nor always wrong.
    assert len({(one.task, one.values["accuracy"]) for one in scores}) >= 9
