"""The engine that runs everywhere: transformers and torch, on a CPU or on one CUDA device.

One batch is answered in four steps:

1. Prefill. The prompt goes through the model in chunks whose borders are at fixed positions. Only the last token of a
   prompt gets logits, so that the memory for logits does not grow with the prompt.
2. The keys and values of whole chunks that all prompts of the batch share are computed once, for one sequence. The next
   batch reuses the chunks that its prompts begin with. A chunk is computed by the same operations on the same numbers
   whether it is reused or not. The answers of a resumed generation are therefore the same, bit for bit.
3. Likelihood. Every continuation goes through the model after the prompt. Then the cache forgets the continuation.
4. Greedy generation, from the same cache.
"""

import gc
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from exact_titan.errors import InputError
from exact_titan.evaluation.answers import Answer, Likelihood
from exact_titan.evaluation.engine_options import EngineOptions
from exact_titan.evaluation.engines import Speed
from exact_titan.evaluation.engines.greedy import Generated, end_tokens
from exact_titan.evaluation.engines.kv_cache import BufferCache
from exact_titan.evaluation.engines.rows import Batch, Rows, shared_length
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer

_MEASURED_PREFILL = 256
_MEASURED_STEPS = 4


def engine(folder: Path, options: EngineOptions) -> "TransformersEngine":
    """Return the engine for the model in a Hugging Face folder."""
    return TransformersEngine(folder, options)


class TransformersEngine:
    """The model of a Hugging Face folder in transformers. The weights are loaded when the first batch needs them.

    Args:
        folder: the folder with the weights, ``config.json`` and the tokenizer.
        options: the options of the command line.

    Raises:
        InputError: if an option is wrong, or if transformers cannot read the ``config.json``.
    """

    def __init__(self, folder: Path, options: EngineOptions) -> None:
        self._folder = folder
        self._tokenizer = PromptTokenizer(folder)
        self._device = _device(options.device)
        cuda = self._device.type == "cuda"
        try:
            self._config = transformers.AutoConfig.from_pretrained(
                folder,
                local_files_only=True,
                # None asks at the terminal whether the code of the folder may run.
                trust_remote_code=False,
            )
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder}: transformers cannot read config.json: {_line(error)}") from None
        self._dtype = _dtype(options.dtype, self._config, cuda=cuda)
        self._attention = options.attention
        if options.attention == "auto":
            flash = cuda and self._dtype != torch.float32 and find_spec("flash_attn")
            self._attention = "flash_attention_2" if flash else "sdpa"
        self.chunk = options.prefill_chunk or (2048 if cuda else 512)
        self.batch = options.batch or (8 if cuda else 1)
        self.by_length = self.batch > 1
        self.settings: dict[str, Any] = {
            "engine": "transformers",
            "version": transformers.__version__,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(self._device) if cuda else "cpu",
            "dtype": str(self._dtype).removeprefix("torch."),
            "attention": self._attention,
            "batch": self.batch,
            "prefill_chunk": self.chunk,
            "rope": options.rope.label,
        }
        self._prefix_ids: list[int] = []
        self._prefix = BufferCache(self._config.get_text_config().num_hidden_layers)

    @torch.inference_mode()
    def measure(self) -> Speed:
        """Return the speed of prefill and of decoding, for the engine's batch."""
        tokens = torch.randint(self._config.get_text_config().vocab_size, (self.batch, _MEASURED_PREFILL + 1)).tolist()
        self._prefill([one[:2] for one in tokens], back=0, room=0)  # loads the weights and the kernels
        begin = time.perf_counter()
        rows, logits = self._prefill([one[1:] for one in tokens], back=0, room=_MEASURED_STEPS)
        logits.argmax().item()  # waits for the device
        middle = time.perf_counter()
        for _ in range(_MEASURED_STEPS):
            self._forward(rows, [[token] for token in logits.argmax(-1).tolist()], last=True).argmax().item()
        end = time.perf_counter()
        return Speed(
            prefill=self.batch * _MEASURED_PREFILL / (middle - begin),
            decode=self.batch * _MEASURED_STEPS / (end - middle),
        )

    @torch.inference_mode()
    def answer(self, examples: Sequence[Example]) -> Iterator[Answer]:
        """Answer a batch of examples."""
        batch = Batch(self._tokenizer, examples)
        if len(examples) > 1 and batch.back >= min(map(len, batch.ids)):
            for example in examples:
                yield from self.answer([example])
            return
        rows, logits = self._prefill(batch.ids, back=batch.back, room=max(one.room for one in examples))
        likelihoods = self._likelihoods(batch, rows, logits)
        generated = [Generated(self._tokenizer, self._ends, one.room, one.stop) for one in examples]
        self._generate(generated, rows, logits)
        for example, measured, one in zip(examples, likelihoods, generated, strict=True):
            yield Answer.of(example, one.text if example.room else None, len(one.ids), one.finish, measured)

    def close(self) -> None:
        """Free the memory of the weights and of the cache."""
        self.__dict__.pop("_model", None)
        self._prefix_ids, self._prefix = [], BufferCache(self._config.get_text_config().num_hidden_layers)
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _prefill(self, ids: Sequence[list[int]], *, back: int, room: int) -> tuple[Rows, torch.Tensor]:
        """Put prompts into a cache.

        Args:
            ids: the token ids of every prompt.
            back: number of last tokens of every prompt that are not shared.
            room: number of tokens to generate after the prompts.

        Returns:
            The cache, and the logits after every prompt, [batch, vocabulary], float32.
        """
        last = min(map(len, ids)) - max(1, back)
        shared = min([last, *(shared_length(ids[0], one) for one in ids[1:])]) // self.chunk * self.chunk
        cache = self._shared_prefix(ids[0][:shared], reserve=max(map(len, ids)) + room)
        # A batch of one prompt continues the kept cache itself. The next batch forgets everything after the prefix.
        rows = Rows(cache if len(ids) == 1 else cache.repeated(len(ids)), [len(one) for one in ids])
        tails = [[0] * pad + one[shared:] for pad, one in zip(rows.padding, ids, strict=True)]
        for start in range(0, rows.tail, self.chunk):
            logits = self._forward(rows, [one[start : start + self.chunk] for one in tails], last=True)
        return rows, logits[:, -1]

    def _shared_prefix(self, ids: list[int], *, reserve: int) -> BufferCache:
        """Return the kept cache of one sequence with exactly these ids, a whole number of chunks."""
        known = shared_length(self._prefix_ids, ids) // self.chunk * self.chunk
        self._prefix.cut(known)
        self._prefix.reserve(reserve)
        self._prefix_ids = ids[:known]
        rows = Rows(self._prefix, [len(ids)])
        for start in range(known, len(ids), self.chunk):
            self._forward(rows, [ids[start : start + self.chunk]], last=True)
            self._prefix_ids = ids[: start + self.chunk]
        return self._prefix

    def _likelihoods(self, batch: Batch, rows: Rows, logits: torch.Tensor) -> list[list[Likelihood]]:
        """Return log-likelihood, number of tokens and greediness of the continuations of every prompt.

        The cache has the prompts before and after the call.
        """
        found: list[list[Likelihood]] = [[] for _ in batch.ids]
        whole, back = rows.cache.length, batch.back
        for number in range(max(map(len, batch.continued))):
            some = [row[number] if number < len(row) else None for row in batch.continued]
            rows.cache.cut(whole - back)
            # The inputs are the tokens before each scored token. Shorter rows are filled up on the right.
            inputs = [
                (ids if one is None else one.ids[:-1])[len(ids) - back :]
                for ids, one in zip(batch.ids, some, strict=True)
            ]
            width = max(map(len, inputs))
            after = logits[:, None]
            if width:
                scored = self._forward(rows, [one + [0] * (width - len(one)) for one in inputs], last=False)
                after = scored if back else torch.cat([after, scored], dim=1)
            for ids, one, row, results in zip(batch.ids, some, after, found, strict=True):
                if one is not None:
                    # Without a step back, the first row of ``after`` is the prediction of the whole prompt.
                    first = one.scored - (len(ids) - back) - (1 if back else 0)
                    results.append(_likelihood(row[first:], one.ids[one.scored :]))
        rows.cache.cut(whole - back)
        if back:
            self._forward(rows, [ids[len(ids) - back :] for ids in batch.ids], last=True)
        return found

    def _generate(self, generated: Sequence[Generated], rows: Rows, logits: torch.Tensor) -> None:
        """Generate after the prompts, until every answer is finished."""
        while not all(one.finished for one in generated):
            best = logits.argmax(-1).tolist()
            for one, token in zip(generated, best, strict=True):
                one.add(token)
            if not all(one.finished for one in generated):
                logits = self._forward(rows, [[token] for token in best], last=True)[:, -1]

    def _forward(self, rows: Rows, ids: Sequence[Sequence[int]], *, last: bool) -> torch.Tensor:
        """Append tokens to the cache, and return their logits or those of the last token, float32."""
        tokens = torch.tensor(ids, device=self._device)
        try:
            output = self._model(
                input_ids=tokens,
                past_key_values=rows.cache,
                use_cache=True,
                logits_to_keep=1 if last else 0,
                **rows.places(tokens.shape[1], self._device),
            )
            return output.logits.float()
        except torch.OutOfMemoryError:
            raise InputError(
                f"the device has too little memory for {len(ids)} prompts of {rows.cache.length:,} tokens: lower "
                f"--batch or --prefill-chunk, and repeat the command"
            ) from None

    @cached_property
    def _ends(self) -> frozenset[int]:
        return end_tokens(self._folder)

    @cached_property
    def _model(self) -> Any:
        transformers.utils.logging.disable_progress_bar()
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                self._folder,
                config=self._config,
                dtype=self._dtype,
                attn_implementation=self._attention,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,  # the other files are pickles
            )
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            raise InputError(f"{self._folder}: transformers cannot load the model: {_line(error)}") from None
        model.to(self._device)  # type: ignore[arg-type]
        return model.eval()


def _likelihood(logits: torch.Tensor, tokens: list[int]) -> Likelihood:
    """Return the log-likelihood of tokens in nats, their number, and whether each is the most likely token.

    Args:
        logits: [at least the number of tokens, vocabulary], float32.
        tokens: the token ids.
    """
    if not tokens:
        return 0.0, 0, True
    logits = logits[: len(tokens)]
    expected = torch.tensor(tokens, device=logits.device)
    chosen = logits.gather(1, expected[:, None])[:, 0] - logits.logsumexp(1)
    return chosen.double().sum().item(), len(tokens), bool((logits.argmax(1) == expected).all())


def _device(name: str | None) -> torch.device:
    """Return the device of an option.

    Raises:
        InputError: if there is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device is {name}: torch cannot use this device ({_line(error)}): name cpu") from None
    return device


def _dtype(name: str, config: Any, *, cuda: bool) -> torch.dtype:
    """Return the data type of the weights. On a CPU decoding in bfloat16 is slower than in float32."""
    if name != "auto":
        return getattr(torch, name)
    stored = getattr(config, "dtype", None)
    return stored if cuda and isinstance(stored, torch.dtype) else torch.float32


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
