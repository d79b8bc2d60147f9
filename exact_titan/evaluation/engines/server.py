"""The engine for a model that somebody else runs: any OpenAI-compatible server with ``/v1/completions``.

The server gets the rendered prompt as text. Log-likelihoods need ``echo`` with ``logprobs``, as vLLM's server gives
them. A server without them is asked for generations only, and the command says so.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.evaluation.answers import Answer, Likelihood
from exact_titan.evaluation.engine_options import EngineOptions
from exact_titan.evaluation.engines import Speed
from exact_titan.evaluation.engines.completions import Client, Refused
from exact_titan.evaluation.engines.greedy import cut_at_stop
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer

_STOPS = 4
"""Number of stop texts that the API of OpenAI takes. The engine cuts the text at all stop texts again."""


def engine(folder: Path, options: EngineOptions) -> "ServerEngine":
    """Return the engine for a server. The folder gives the tokenizer."""
    return ServerEngine(folder, options)


class ServerEngine:
    """A model on a server. The requests of a batch run at one time.

    Args:
        folder: folder with the tokenizer of the model.
        options: the options of the command line.

    Raises:
        InputError: if the server cannot be reached, or if an option is missing.
    """

    by_length = False
    chunk = 1

    def __init__(self, folder: Path, options: EngineOptions) -> None:
        self._tokenizer = PromptTokenizer(folder)
        self._client = Client(options.server)
        self._model = self._client.model()
        self.batch = options.batch or 8
        self._measures = self._gives_likelihood()
        if not self._measures:
            print(
                f"{self._client.url} gives no log-probabilities of prompts (echo with logprobs): the answers have no "
                f"log-likelihood",
                flush=True,
            )
        self.settings: dict[str, Any] = {
            "engine": "server",
            "url": self._client.url,
            "model": self._model,
            "likelihood": self._measures,
        }

    def measure(self) -> Speed | None:
        """Return None: other requests may share the server."""
        return None

    def answer(self, examples: Sequence[Example]) -> Iterator[Answer]:
        """Answer a batch of examples. An example without generation has no answer if the server gives no likelihood."""
        with ThreadPoolExecutor(self.batch) as pool:
            answerable = [one for one in examples if one.room or self._measures]
            try:
                yield from pool.map(self._one, answerable)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Nothing to free."""

    def _one(self, example: Example) -> Answer:
        text, generated, finish = self._generate(example) if example.room else (None, 0, "")
        measured = [self._likelihood(example, one) for one in example.continuations] if self._measures else []
        return Answer.of(example, text, generated, finish, measured)

    def _generate(self, example: Example) -> tuple[str, int, str]:
        body: dict[str, Any] = {"prompt": self._tokenizer.without_bos(example.prompt), "max_tokens": example.room}
        if example.stop:
            body["stop"] = list(example.stop[:_STOPS])
        response = self._complete(body, example.id)
        try:
            choice = response["choices"][0]
            text, stopped = cut_at_stop(choice["text"], example.stop)
            tokens = (response.get("usage") or {}).get("completion_tokens")
            finish = "stop" if stopped or choice.get("finish_reason") == "stop" else "length"
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise InputError(f"{self._client.url}/completions: the response has no text ({error!r})") from None
        return text, tokens if isinstance(tokens, int) else len(self._tokenizer.encode(choice["text"])), finish

    def _likelihood(self, example: Example, continuation: str) -> Likelihood:
        """Return log-likelihood, number of tokens and greediness of a continuation."""
        before, after = self._tokenizer.split(example.prompt, continuation, example.special_tokens)
        prompt = self._tokenizer.without_bos(example.prompt + continuation)
        response = self._complete({"prompt": prompt, "max_tokens": 1, "echo": True, "logprobs": 1}, example.id)
        whole = len(before) + len(after)
        try:
            found = response["choices"][0]["logprobs"]
            if len(found["token_logprobs"]) not in (whole, whole + 1):
                raise InputError(
                    f"{self._client.url}: the server divides example {example.id} into "
                    f"{len(found['token_logprobs'])} tokens, and {self._tokenizer.folder} into {whole}: name the "
                    f"folder of the server's model"
                )
            chosen = found["token_logprobs"][len(before) : whole]
            best = [max(one.values()) for one in found["top_logprobs"][len(before) : whole]]
            greedy = all(one >= other for one, other in zip(chosen, best, strict=True))
            return float(sum(chosen)), len(after), greedy
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise InputError(f"{self._client.url}/completions: the response has no logprobs ({error!r})") from None

    def _gives_likelihood(self) -> bool:
        """Ask once for the log-probabilities of a short prompt."""
        body = {"model": self._model, "prompt": "a b c", "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        try:
            found = self._client.call("completions", body)["choices"][0]["logprobs"]
            return len(found["token_logprobs"]) > 2 and any(found["top_logprobs"])
        except (Refused, KeyError, IndexError, TypeError):
            return False

    def _complete(self, body: dict[str, Any], name: str) -> dict[str, Any]:
        try:
            return self._client.call("completions", {"model": self._model, "temperature": 0, "seed": 0, **body})
        except Refused as error:
            raise InputError(f"{self._client.url}/completions refuses example {name}: {error}") from None
