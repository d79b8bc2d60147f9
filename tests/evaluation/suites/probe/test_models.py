"""The margins of a tiny random model of transformers, by the engine and by hand."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig

from exact_titan.evaluation.answers import Answer
from exact_titan.evaluation.engine_options import EngineOptions
from exact_titan.evaluation.engines import make_engine
from exact_titan.evaluation.options import ProbeOptions
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer
from exact_titan.evaluation.suites import Request, find_suite

SUITE = find_suite("probe")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of two layers. A token is a byte, so the choices have several tokens."""
    folder = tmp_path_factory.mktemp("model")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: k for k, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        attn_implementation="eager",
        bos_token_id=None,
        eos_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return PromptTokenizer(folder)


@pytest.fixture(scope="module")
def examples(tokenizer):
    return list(SUITE.prepare(Request(512, 2, 0, tokenizer, ProbeOptions())).examples)


@pytest.fixture(scope="module")
def by_hand(folder, tokenizer):
    """A function that returns the log-likelihoods of the choices of an example, from full passes in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()

    def logprobs(example, hidden=slice(0, 0)):
        found = []
        for choice in example.continuations:
            prompt, ids = tokenizer.encode(example.prompt), tokenizer.encode(example.prompt + choice)
            mask = torch.ones(1, len(ids), dtype=torch.int64)
            mask[0, hidden] = 0
            with torch.no_grad():
                logits = model(torch.tensor([ids]), attention_mask=mask).logits[0].log_softmax(-1)
            found.append(sum(logits[at - 1, ids[at]].item() for at in range(len(prompt), len(ids))))
        return found

    return logprobs


def test_the_margins_of_the_engine_are_those_made_by_hand(folder, examples, by_hand):
    engine = make_engine(folder, EngineOptions(batch=1, device="cpu"))
    answers = {answer.id: answer for one in examples for answer in engine.answer([one])}
    scores = {score.id: score for score in SUITE.score(examples, answers)}
    pairs = {one.meta["pair"]: one for one in examples if one.meta["variant"] == "evidence"}
    distractors = {one.meta["pair"]: one for one in examples if one.meta["variant"] == "distractor"}
    assert len(scores) == len(pairs) == 2 * 2 * 2
    for pair, example in pairs.items():
        right = by_hand(example)
        without = by_hand(distractors[pair])
        gold = example.gold
        margin = right.pop(gold) - max(right)
        margin_without = without.pop(gold) - max(without)
        values = scores[pair].values
        assert values["margin_evidence"] == pytest.approx(margin, abs=1e-4)
        assert values["margin_distractor"] == pytest.approx(margin_without, abs=1e-4)
        assert values["context_margin"] == pytest.approx(margin - margin_without, abs=1e-4)
        assert abs(margin - margin_without) > 1e-3


def test_the_context_margin_is_exactly_0_if_the_model_cannot_see_the_passage(tokenizer, examples, by_hand):
    answers = {}
    for one in examples[:8]:
        (passage,) = [part for part in one.prompt.split("\n\n") if part.startswith("Four people")]
        end = one.tokens - one.distance
        hidden = slice(end - tokenizer.count(passage), end)
        answers[one.id] = Answer(one.id, logprobs=tuple(by_hand(one, hidden)))
    scores = SUITE.score(examples, answers)
    assert [score.values["context_margin"] for score in scores] == [0.0] * 4
