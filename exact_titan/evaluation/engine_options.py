"""The options of the engines. The module is light, because the command line reads it."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import arg


@dataclass(frozen=True)
class RopeOptions:
    """An extension of RoPE, for prompts that are longer than the model's positions."""

    scaling: Annotated[Literal["yarn", "linear"] | None, arg(help_behavior_hint="(default: no extension)")] = None
    """Rule of the extension. The answers show the rule in their header."""

    factor: float = 1.0
    """The model is run with this number times its own positions."""

    @property
    def label(self) -> str:
        """The extension in words, for the header of the answers."""
        return "as in config.json" if self.scaling is None else f"{self.scaling}, factor {self.factor:g}"


NO_EXTENSION = RopeOptions()


@dataclass(frozen=True)
class ServerOptions:
    """An OpenAI-compatible server, for ``--engine server``."""

    url: Annotated[str | None, arg(metavar="URL", help_behavior_hint="(needed for --engine server)")] = None
    """Address of the API, such as http://localhost:8000/v1."""

    model: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: the only model)")] = None
    """Name of the model on the server."""

    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the API key. Without the variable no key is sent."""

    timeout: float = 600.0
    """Seconds that one request may take."""

    retries: int = 6
    """Number of further tries after a lost connection, HTTP 429 or HTTP 5xx. The pauses are 1, 2, 4, … seconds."""


@dataclass(frozen=True)
class EngineOptions:
    """The engine and its settings."""

    engine: Literal["transformers", "vllm", "server"] = "transformers"
    """transformers: everywhere. vllm: where vLLM is installed. server: an OpenAI-compatible server."""

    batch: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: CPU 1, CUDA 8, vllm 256, server 8)")
    ] = None
    """Prompts that are answered together. transformers at 1: the same records in every run, bit for bit."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the weights. auto: that of the folder on CUDA, float32 on a CPU."""

    device: Annotated[
        str | None, arg(metavar="DEVICE", help_behavior_hint="(default: cuda if there is one, or cpu)")
    ] = None
    """transformers: device of torch, such as cuda:1."""

    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"
    """transformers: kernel of the attention. auto: flash_attention_2 on CUDA if flash-attn is installed, or sdpa."""

    prefill_chunk: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: CPU 512, CUDA 2048)")] = None
    """transformers: tokens of a prompt in one forward pass. Prompts share their first tokens in whole chunks."""

    gpus: int = 1
    """vllm: GPUs of one model (tensor parallel)."""

    gpu_memory: float = 0.9
    """vllm: share of the memory of a GPU that the engine uses."""

    rope: RopeOptions = field(default_factory=RopeOptions)
    """See RopeOptions."""

    server: ServerOptions = field(default_factory=ServerOptions)
    """See ServerOptions."""


DEFAULTS = EngineOptions()
