import socket
from dataclasses import replace
from pathlib import Path

import pytest

from exact_titan.errors import InputError
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.options import QaOptions
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer
from exact_titan.evaluation.suites import Prepared, Request, find_suite
from exact_titan.evaluation.suites.qa import preparation
from exact_titan.evaluation.suites.qa.tasks import TASKS
from tests.evaluation.suites.qa.tiny_questions import write_byte_tokenizer, write_questions

SHOTS = ("mmlu=2", "arc_challenge=1", "hellaswag=1", "winogrande=1", "piqa=1", "gsm8k=1")


@pytest.fixture(scope="module")
def request_of_all(tmp_path_factory: pytest.TempPathFactory) -> Request:
    folder = tmp_path_factory.mktemp("qa")
    write_byte_tokenizer(folder / "model")
    options = QaOptions(folder=write_questions(folder / "questions"), shots=SHOTS)
    return Request(length=None, examples=0, seed=0, tokenizer=PromptTokenizer(folder / "model"), options=options)


def prepare(request: Request, **options: object) -> tuple[Prepared, list[Example]]:
    prepared = find_suite("qa").prepare(replace(request, options=replace(request.options, **options)))
    return prepared, list(prepared.examples)


def test_local_questions_need_no_network(request_of_all: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    prepared, examples = prepare(request_of_all)
    counts = {task: sum(one.task == task for one in examples) for task in TASKS}
    assert counts == {"mmlu": 6, "arc_challenge": 4, "hellaswag": 4, "winogrande": 8, "piqa": 4, "gsm8k": 4}
    assert "mmlu: 6 of 6 questions of the split test from a local folder, 2-shot" in prepared.notes
    assert "mmlu: 2 of 57 subjects" in prepared.notes
    assert len({one.id for one in examples}) == len(examples)


def test_the_records_have_what_the_score_needs(request_of_all: Request) -> None:
    _, examples = prepare(request_of_all, shots=[f"{task}=0" for task in TASKS])
    by_task = {task: [one for one in examples if one.task == task] for task in TASKS}
    tokenizer = request_of_all.tokenizer
    assert all(one.tokens == tokenizer.count(one.prompt) for one in examples)
    assert [one.room for one in examples if one.room] == [256] * 4
    number = next(one for one in by_task["gsm8k"] if one.meta["row"] == 3)
    assert number.prompt == "Question: Two boxes of 3 pens. How many?\nAnswer:"
    assert (number.continuations, number.references) == ((" 2 * 3 = <<2*3=6>>\n#### 6",), ("6",))
    assert number.stop == ("Question:", "</s>", "<|im_end|>")
    piqa = next(one for one in by_task["piqa"] if one.meta["row"] == 1)
    assert piqa.continuations == (" Use water and a cloth.", " Use lamp.")
    assert (piqa.gold, piqa.references, piqa.meta["characters"]) == (1, ("Use lamp.",), [22, 9])
    pair = [one for one in by_task["winogrande"] if one.meta["row"] == 1]
    assert [one.prompt.rpartition(" the ")[2] for one in pair] == ["lamp", "bag"]
    assert {one.continuations for one in pair} == {(" was too big.",)}
    assert [one.meta["gold"] for one in pair] == [1, 1]
    assert "characters" not in by_task["mmlu"][0].meta


def test_the_first_of_many_questions_are_those_of_few(request_of_all: Request) -> None:
    """Each question and its few-shot examples depend on the seed, the task and the index alone."""
    _, every = prepare(request_of_all)
    _, few = prepare(request_of_all, questions=2)
    assert few == [one for one in every if int(one.id.split("/")[3]) < 2]
    assert prepare(replace(request_of_all, examples=2))[1] == few
    _, alone = prepare(request_of_all, tasks=("piqa",), questions=2)
    assert alone == [one for one in few if one.task == "piqa"]
    assert prepare(replace(request_of_all, seed=1), questions=2)[1] != few


def test_the_draw_of_few_shot_examples_does_not_depend_on_other_questions(
    request_of_all: Request, tmp_path: Path
) -> None:
    folder = write_questions(tmp_path)
    rows = (folder / "piqa/validation.jsonl").read_text()
    (folder / "piqa/train.jsonl").write_text(rows.replace("Clean", "Wash"))
    options = {"folder": folder, "tasks": ("piqa",), "shots": ("piqa=1",)}
    _, every = prepare(request_of_all, **options)
    drawn = {one.prompt.partition("\n")[0] for one in every}
    assert len(drawn) > 1
    assert "Wash" in every[0].prompt
    _, again = prepare(request_of_all, **options)
    assert again == every
    (folder / "piqa/validation.jsonl").write_text(rows.partition("\n")[0] + "\n")
    (one,) = prepare(request_of_all, **options)[1]
    assert one.prompt.partition("\n")[0] == every[0].prompt.partition("\n")[0]


def test_few_shot_examples_stand_before_the_question(request_of_all: Request) -> None:
    _, examples = prepare(request_of_all, tasks=("mmlu",))
    for one in examples:
        assert one.prompt.count("\nAnswer:") == 3
        assert one.prompt.startswith(
            f"The following are multiple choice questions (with answers) about {one.meta['subject']}"
        )
        assert one.prefix == f"mmlu_{one.meta['subject']}"


def test_everything_that_decides_the_prompts_is_in_the_settings(request_of_all: Request, tmp_path: Path) -> None:
    def settings(**options: object) -> object:
        return (
            find_suite("qa")
            .prepare(replace(request_of_all, options=replace(request_of_all.options, **options)))
            .settings
        )

    before = settings(tasks=("piqa",))
    assert settings(tasks=("piqa",)) == before
    assert settings(tasks=("piqa",), questions=2) != before
    assert settings(tasks=("piqa",), shots=("piqa=0",)) != before
    other = write_questions(tmp_path)
    assert settings(tasks=("piqa",), folder=other) == before  # the same questions elsewhere
    file = other / "piqa/validation.jsonl"
    file.write_text(file.read_text().replace("water", "Water"))
    assert settings(tasks=("piqa",), folder=other) != before


def test_a_template_takes_the_space_of_the_choices(request_of_all: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_of_all.tokenizer, "template", "dolly")
    monkeypatch.setattr(request_of_all.tokenizer, "wrap", lambda body: f"### {body}\n")
    _, examples = prepare(request_of_all, tasks=("piqa",), shots=("piqa=0",))
    assert {one.prompt[:13] for one in examples} == {"### Question:"}
    assert {one.continuations[0] for one in examples} == {"Use water and a cloth."}


def test_another_split_and_special_tokens_are_said(request_of_all: Request, tmp_path: Path) -> None:
    folder = write_questions(tmp_path)
    (folder / "arc_challenge/test.jsonl").rename(folder / "arc_challenge/validation.jsonl")
    file = folder / "piqa/validation.jsonl"
    file.write_text(file.read_text().replace("Clean", "<|end|>", 1))
    prepared, examples = prepare(request_of_all, folder=folder, tasks=("arc_challenge", "piqa"))
    assert sum("arc_challenge: the folder has no split test; the scores" in note for note in prepared.notes) == 1
    assert (
        sum("piqa: 1 rows spell a special token of the tokenizer, such as <|end|>" in note for note in prepared.notes)
        == 1
    )
    assert sum(one.task == "arc_challenge" for one in examples) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ("mlu",)}, "--qa.tasks: there is no task 'mlu'; did you mean mmlu"),
        ({"questions": -1}, "--qa.questions -1: name a number from 0 on"),
        ({"shots": ("5",)}, "--qa.shots 5: an entry is TASK=N"),
        ({"shots": ("piqua=5",)}, "--qa.shots piqua=5: an entry is TASK=N, .* the tasks are mmlu, arc_challenge"),
        (
            {"tasks": ("gsm8k",), "shots": ("gsm8k=3",)},
            "--qa.shots: gsm8k has 3 rows in the split train, and 3 few-shot examples need 4",
        ),
        ({"folder": Path("/nowhere")}, "--qa.folder /nowhere has no folder"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str, request_of_all: Request) -> None:
    with pytest.raises(InputError, match=message):
        prepare(request_of_all, **options)


def test_a_hub_without_answer_is_named(
    request_of_all: Request, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import datasets

    def unreachable(name: str, *_: object, **__: object) -> None:
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match=r"openai/gsm8k \(main\) of the .* hub cannot be loaded .* --qa\.folder"):
        prepare(request_of_all, folder=None, tasks=("gsm8k",))


def test_a_missing_lm_eval_is_named(request_of_all: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'exact-titan\[eval\]'"):
        prepare(request_of_all)


def test_the_datasets_are_those_of_lm_eval(request_of_all: Request) -> None:
    """The hub's dataset, its configuration and the splits of every task, as lm-eval's own files name them."""
    from exact_titan.evaluation.suites.qa.contexts import Contexts, subjects_of_mmlu
    from exact_titan.evaluation.suites.qa.questions import local_folder, local_questions

    assert len(subjects_of_mmlu()) == 57
    folder = request_of_all.options.folder
    parts = {name: one for name, one in TASKS.items() if name != "mmlu"} | {"mmlu_anatomy": TASKS["mmlu"]}
    questions = {
        name: local_questions(local_folder(folder, one) / ("anatomy" if one.subjects else ""), one, shots=1)
        for name, one in parts.items()
    }
    for name, task in Contexts(questions, parts, dict.fromkeys(parts, 1)).tasks.items():
        ours, theirs = parts[name], task.config
        assert (ours.hub, ours.config or ("anatomy" if ours.subjects else None)) == (
            theirs.dataset_path,
            theirs.dataset_name,
        )
        assert ours.splits[0] == (theirs.test_split or theirs.validation_split)
        assert ours.shots_split == (theirs.fewshot_split or theirs.training_split)
