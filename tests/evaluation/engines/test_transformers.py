"""The transformers engine against ``generate`` of transformers, and against one full forward pass."""

import random
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from exact_titan.errors import InputError
from exact_titan.evaluation.answers import Answer
from exact_titan.evaluation.engine_options import EngineOptions
from exact_titan.evaluation.engines import make_engine
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer
from tests.evaluation.tiny_models import FAMILIES, example, text, write_model

CHUNK = 16


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {family: write_model(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def answers(folder: Path, examples: list[Example], batch: int = 1, **options) -> list[Answer]:
    engine = make_engine(folder, EngineOptions(batch=batch, prefill_chunk=CHUNK, **options))
    return [one for k in range(0, len(examples), batch) for one in engine.answer(examples[k : k + batch])]


def reference(folder: Path, one: Example) -> tuple[list[int], list[float], list[bool]]:
    """Return the greedy tokens, and log-likelihood and greediness of every continuation, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = PromptTokenizer(folder)
    ids = torch.tensor([tokenizer.encode(one.prompt)])
    room = max(1, one.room)
    mask = torch.ones_like(ids)
    generated = model.generate(ids, attention_mask=mask, max_new_tokens=room, do_sample=False, pad_token_id=0)
    logprobs, greedy = [], []
    for continuation in one.continuations:
        before, after = tokenizer.split(one.prompt, continuation)
        with torch.no_grad():
            logits = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
        rows = logits[len(before) - 1 : len(before) + len(after) - 1]
        logprobs.append(sum(row[token].item() for row, token in zip(rows, after, strict=True)))
        greedy.append(rows.argmax(-1).tolist() == after)
    return generated[0, ids.shape[1] :].tolist(), logprobs, greedy


def varied() -> list[Example]:
    """Return examples of many lengths, with shared beginnings, spaces at the end, and several continuations."""
    shared = text(45, seed=1)
    made = [example(f"a{k}", f"{shared} {text(k, seed=k)}", continuations=(f" {text(3, k)}",)) for k in (1, 2, 20, 31)]
    made.append(example("space", f"{shared} {text(3, 7)} ", continuations=("w1 w2", "w3")))
    made.append(example("choices", text(5, 9), room=0, continuations=(" w1", " w2 w3", " w4 w5 w6")))
    made.append(example("alone", text(1, 10), room=3))
    return made


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [1, 4])
def test_answers_equal_those_of_transformers(folders, family, batch):
    tokenizer = PromptTokenizer(folders[family])
    examples = varied()
    found = answers(folders[family], examples, batch)
    assert [one.id for one in found] == [one.id for one in examples]
    for one, answer in zip(examples, found, strict=True):
        tokens, logprobs, greedy = reference(folders[family], one)
        assert answer.logprobs == pytest.approx(logprobs, abs=2e-5)
        assert list(answer.greedy) == greedy
        assert answer.tokens == tuple(len(tokenizer.split(one.prompt, text)[1]) for text in one.continuations)
        if one.room:
            assert (answer.text, answer.generated) == (tokenizer.decode(tokens), len(tokens))
        else:
            assert (answer.text, answer.generated, answer.finish) == (None, 0, "")


def test_likelihood_does_not_change_the_generation(folders):
    plain = [replace(one, continuations=()) for one in varied() if one.room and one.id != "space"]
    measured = [one for one in varied() if one.room and one.id != "space"]
    assert [one.text for one in answers(folders["llama"], plain)] == [
        one.text for one in answers(folders["llama"], measured)
    ]


def test_an_answer_does_not_depend_on_the_answers_before(folders):
    """Bit for bit, also where a beginning is shared and computed before or not."""
    examples = sorted(varied(), key=lambda one: one.prompt)
    whole = answers(folders["llama"], examples)
    assert answers(folders["llama"], examples) == whole
    for first in range(1, len(examples)):
        assert answers(folders["llama"], examples[first:]) == whole[first:]
    shuffled = random.Random(0).sample(examples, len(examples))
    by_id = {one.id: one for one in whole}
    assert answers(folders["llama"], shuffled) == [by_id[one.id] for one in shuffled]


def test_shared_chunks_are_computed_once(folders, monkeypatch):
    shared = text(100, seed=1)
    examples = [example(str(k), f"{shared} w{k} w{k}", room=0, continuations=(" w1",)) for k in range(5)]
    for batch, tokens in ((1, 96 + 5 * 6), (5, 96 + 5 * 6)):
        engine = make_engine(folders["llama"], EngineOptions(batch=batch, prefill_chunk=CHUNK))
        model, seen = engine._model, []
        hook = model.register_forward_pre_hook(
            lambda _, __, kwargs, seen=seen: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
        )
        for k in range(0, 5, batch):
            list(engine.answer(examples[k : k + batch]))
        hook.remove()
        assert sum(seen) == tokens


def test_the_memory_for_logits_does_not_grow_with_the_prompt(folders):
    engine, shapes = make_engine(folders["llama"], EngineOptions(batch=2, prefill_chunk=CHUNK)), []
    engine._model.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.logits.shape[:2])))
    list(engine.answer([example(str(k), text(90 + k, k), room=2) for k in range(2)]))
    assert len(shapes) > 6
    assert set(shapes) == {(2, 1)}


def test_end_token_and_stop_text(folders, tmp_path):
    folder, prompt = folders["llama"], text(20, 3)
    (free,) = answers(folder, [example("a", prompt)])
    assert (free.finish, free.generated) == ("length", 8)
    stop = free.text[9:13]
    (stopped,) = answers(folder, [example("a", prompt, stop=("never", stop))])
    assert (stopped.text, stopped.finish) == (free.text[: free.text.index(stop)], "stop")
    assert stopped.generated < 8
    second = reference(folder, example("a", prompt))[0][1]
    ended = write_model(tmp_path / "ended", end=second)
    (answer,) = answers(ended, [example("a", prompt)])
    assert (answer.finish, answer.generated) == ("stop", 2)


def test_no_network_is_used(folders, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the engine opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    engine = make_engine(folders["qwen2"], EngineOptions())
    assert list(engine.answer([example("a", text(5, 1))]))
    assert engine.measure().prefill > 0


def test_settings_name_everything_that_changes_an_answer(folders):
    settings = make_engine(folders["llama"], EngineOptions(batch=2, prefill_chunk=64)).settings
    assert settings["engine"] == "transformers"
    assert (settings["batch"], settings["prefill_chunk"], settings["dtype"]) == (2, 64, "float32")
    assert {"version", "torch", "device", "attention"} <= settings.keys()


def test_a_damaged_model_is_one_line(folders, tmp_path):
    broken = write_model(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"broken: transformers cannot load the model"):
        answers(broken, [example("a", "w1")])
    with pytest.raises(InputError, match="--device is mars"):
        make_engine(folders["llama"], EngineOptions(device="mars"))
