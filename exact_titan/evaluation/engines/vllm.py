"""The engine for many GPUs and long prompts: vLLM, where it is installed.

Generation uses automatic prefix caching: prompts with the same first tokens share their keys and values. vLLM computes
a prompt whole when it measures log-likelihoods (``prompt_logprobs``). The engine therefore measures first, and
generates from the cache that the measurement has filled.
"""

import gc
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.evaluation.answers import Answer, Likelihood
from exact_titan.evaluation.engine_options import EngineOptions
from exact_titan.evaluation.engines import Speed
from exact_titan.evaluation.engines.greedy import cut_at_stop, end_tokens
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer
from exact_titan.models import hf_config


def engine(folder: Path, options: EngineOptions) -> "VllmEngine":
    """Return the engine for the model in a Hugging Face folder.

    Raises:
        InputError: if vLLM is not installed.
    """
    return VllmEngine(folder, options)


class VllmEngine:
    """A model in vLLM. The weights are loaded when the first batch needs them.

    Args:
        folder: the folder with the weights, ``config.json`` and the tokenizer.
        options: the options of the command line.

    Raises:
        InputError: if vLLM is not installed.
    """

    by_length = False
    chunk = 16  # block size of vLLM's cache

    def __init__(self, folder: Path, options: EngineOptions) -> None:
        try:
            installed = version("vllm")
        except PackageNotFoundError:
            raise InputError(
                "--engine vllm: vLLM is not installed: install it with `pip install exact-titan[vllm]`, or choose "
                "--engine transformers"
            ) from None
        self._folder, self._options = folder, options
        self._tokenizer = PromptTokenizer(folder)
        config = hf_config.read_config(folder)
        self._positions = config.get("max_position_embeddings")
        stored = config.get("dtype") or config.get("torch_dtype") or "auto"
        # vLLM's own "auto" replaces float32 by a shorter type.
        self._dtype = stored if options.dtype == "auto" else options.dtype
        self.batch = options.batch or 256
        self.settings: dict[str, Any] = {
            "engine": "vllm",
            "version": installed,
            "dtype": self._dtype,
            "gpus": options.gpus,
            "prefix_caching": True,
            "batch_invariant": os.environ.get("VLLM_BATCH_INVARIANT", "0"),
            "max_model_len": self._positions,
            "rope": options.rope.label,
        }

    def measure(self) -> Speed | None:
        """Return None: vLLM's speed depends on the number of requests that it batches."""
        return None

    def answer(self, examples: Sequence[Example]) -> Iterator[Answer]:
        """Answer a batch of examples."""
        likelihoods = self._likelihoods(examples)
        generated = self._generate([one for one in examples if one.room])
        for example, measured in zip(examples, likelihoods, strict=True):
            text, tokens, finish = next(generated) if example.room else (None, 0, "")
            yield Answer.of(example, text, tokens, finish, measured)

    def close(self) -> None:
        """Free the memory of the GPUs."""
        self.__dict__.pop("_llm", None)
        gc.collect()

    def _likelihoods(self, examples: Sequence[Example]) -> list[list[Likelihood]]:
        """Return log-likelihood, number of tokens and greediness of every continuation of every example."""
        from vllm import SamplingParams

        splits = [
            [self._tokenizer.split(one.prompt, text, one.special_tokens) for text in one.continuations]
            for one in examples
        ]
        whole = [before + after for pairs in splits for before, after in pairs]
        outputs: Iterator[Any] = iter(())
        if whole:
            params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1, detokenize=False)
            outputs = iter(self._llm.generate([{"prompt_token_ids": ids} for ids in whole], params, use_tqdm=False))
        return [
            [
                _likelihood(output.prompt_logprobs[len(before) :], after)
                for (before, after), output in zip(pairs, islice(outputs, len(pairs)), strict=True)
            ]
            for pairs in splits
        ]

    def _generate(self, examples: Sequence[Example]) -> Iterator[tuple[str, int, str]]:
        """Yield text, number of tokens and reason of the end of every generation."""
        from vllm import SamplingParams

        if not examples:
            return
        prompts = [{"prompt_token_ids": self._tokenizer.encode(one.prompt, one.special_tokens)} for one in examples]
        ends = sorted(end_tokens(self._folder))
        params = [
            SamplingParams(temperature=0.0, max_tokens=one.room, stop=list(one.stop), stop_token_ids=ends)
            for one in examples
        ]
        for example, output in zip(examples, self._llm.generate(prompts, params, use_tqdm=False), strict=True):
            first = output.outputs[0]
            text, _ = cut_at_stop(self._tokenizer.decode(first.token_ids), example.stop)
            yield text, len(first.token_ids), "stop" if first.finish_reason == "stop" else "length"

    @cached_property
    def _llm(self) -> Any:
        from vllm import LLM

        try:
            return LLM(
                model=str(self._folder),
                trust_remote_code=False,
                load_format="safetensors",  # the other files are pickles
                dtype=self._dtype,
                tensor_parallel_size=self._options.gpus,
                gpu_memory_utilization=self._options.gpu_memory,
                enable_prefix_caching=True,
                max_model_len=self._positions,
                seed=0,
            )
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{self._folder}: vLLM cannot load the model: {' '.join(str(error).split())}") from None


def _likelihood(positions: Sequence[Any], tokens: Sequence[int]) -> Likelihood:
    """Return the log-likelihood of tokens in nats, their number, and whether each is the most likely token.

    Args:
        positions: for every token the log-probabilities by token id. vLLM gives that of the token, and the largest.
        tokens: the token ids.
    """
    chosen = [position[token] for position, token in zip(positions, tokens, strict=True)]
    return sum(one.logprob for one in chosen), len(tokens), all(one.rank == 1 for one in chosen)
