"""The flow of arguments to vLLM and of its results, with a module in its place. No test runs vLLM itself."""

import math
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from exact_titan.errors import InputError
from exact_titan.evaluation.engine_options import EngineOptions
from exact_titan.evaluation.engines import make_engine
from exact_titan.evaluation.engines import vllm as adapter
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer
from tests.evaluation.tiny_models import example, text, write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("vllm"))


@pytest.fixture
def calls(monkeypatch):
    """A module with the names of vLLM. It repeats the last token, and gives token t the log-probability -t."""
    seen = SimpleNamespace(loaded=[], requests=[])

    class SamplingParams(SimpleNamespace):
        pass

    class LLM:
        def __init__(self, **options):
            seen.loaded.append(options)

        def generate(self, prompts, sampling_params, *, use_tqdm):
            assert use_tqdm is False
            many = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(prompts)
            outputs = []
            for prompt, params in zip(prompts, many, strict=True):
                ids = prompt["prompt_token_ids"]
                seen.requests.append((ids, params))
                logprobs = [None, *({one: SimpleNamespace(logprob=-float(one), rank=1 + one % 2)} for one in ids[1:])]
                new = SimpleNamespace(token_ids=ids[-1:] * params.max_tokens, finish_reason="length")
                outputs.append(SimpleNamespace(prompt_logprobs=logprobs, outputs=[new]))
            return outputs

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(adapter, "version", lambda name: "0.99.0")
    return seen


def test_requests_and_results(folder, calls, monkeypatch):
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    tokenizer = PromptTokenizer(folder)
    engine = make_engine(folder, EngineOptions(engine="vllm", gpus=2, gpu_memory=0.5))
    examples = [
        example("a", text(6, 1), room=3, stop=("never",), continuations=(" w1 w2", " w3")),
        example("b", text(5, 2), room=0, continuations=(" w4",)),
    ]
    first, second = engine.answer(examples)
    splits = [tokenizer.split(one.prompt, text) for one in examples for text in one.continuations]
    assert [ids for ids, _ in calls.requests] == [
        *(before + after for before, after in splits), tokenizer.encode(examples[0].prompt)]  # fmt: skip
    assert [params.prompt_logprobs for _, params in calls.requests[:3]] == [1, 1, 1]
    last = calls.requests[3][1]
    assert (last.temperature, last.max_tokens, last.stop, last.stop_token_ids) == (0.0, 3, ["never"], [0])
    assert first.logprobs + second.logprobs == tuple(-float(sum(after)) for _, after in splits)
    assert first.greedy + second.greedy == tuple(all(one % 2 == 0 for one in after) for _, after in splits)
    assert first.text == tokenizer.decode(tokenizer.encode(examples[0].prompt)[-1:] * 3)
    assert (first.generated, first.finish, second.text, second.finish) == (3, "length", None, "")
    assert not math.isnan(sum(first.logprobs))
    (loaded,) = calls.loaded
    assert loaded["model"] == str(folder)
    assert (loaded["tensor_parallel_size"], loaded["gpu_memory_utilization"], loaded["max_model_len"]) == (2, 0.5, 512)
    assert loaded["enable_prefix_caching"] is True
    assert engine.settings == {
        "engine": "vllm", "version": "0.99.0", "dtype": "float32", "gpus": 2, "prefix_caching": True,
        "batch_invariant": "1", "max_model_len": 512, "rope": "as in config.json"}  # fmt: skip


def test_without_vllm_the_way_out_is_named(folder, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(adapter, "version", missing)
    with pytest.raises(InputError, match=r"pip install exact-titan\[vllm\]"):
        make_engine(folder, EngineOptions(engine="vllm"))
