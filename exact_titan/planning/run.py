"""The plan of a run from its config."""

import copy
from dataclasses import dataclass, replace

from torchtitan.distributed.activation_checkpoint import MemoryBudgetAC
from torchtitan.protocols.model_spec import ModelSpec

from exact_titan.errors import InputError
from exact_titan.planning.compute import ComputePlan, Windows, plan_compute
from exact_titan.planning.memory import MemoryPlan, plan_memory
from exact_titan.sampling.dataset_path import parse
from exact_titan.titan import start
from exact_titan.titan.layout import check_sizes_of_model, data_parallel_ranks
from exact_titan.titan.loader import open_mixture
from exact_titan.titan.model.decoder import DecoderModel, decoder_spec
from exact_titan.titan.model.flops import attention_shape
from exact_titan.titan.preflight import check_options
from exact_titan.titan.run_config import RunConfig


@dataclass(frozen=True)
class RunPlan:
    """The memory and the work of a run, and the inputs of the plan."""

    config: RunConfig
    name: str
    rope: str | None
    """RoPE in words. None: the recipe has a model of its own."""

    vocab_size: int
    nproc: int
    shards: int
    """GPUs that share one copy of the parameters, gradients and optimizer state."""

    microbatches: int
    """Microbatches of an optimizer step on each GPU."""

    windows: Windows
    memory: MemoryPlan
    compute: ComputePlan


def plan_run(config: RunConfig, *, nproc: int) -> RunPlan:
    """Plan a run on ``nproc`` GPUs. The planner needs no GPU and no weights.

    A packed dataset makes the FLOPs of attention exact.

    Raises:
        InputError: if an option is wrong, or if the planner does not support an option. The message names the option.
    """
    config = _checked(config, nproc)
    training, parallelism = config.training, config.parallelism
    loader = config.dataloader
    packed = bool(loader.dataset_path) and all(entry.folder.exists() for entry in parse(loader.dataset_path))
    mixture = open_mixture(loader, training.seq_len) if packed else None
    spec = _model_spec(config, mixture.datasets[0].manifest.tokenizer.vocab_size if mixture else None)
    check_sizes_of_model(spec.model, parallelism)
    windows = Windows.of_mixture(mixture, loader.split) if mixture else Windows.unknown(training.seq_len)
    local = training.local_batch_size
    data_ranks = data_parallel_ranks(parallelism, nproc)
    global_batch = training.global_batch_size if training.global_batch_size > 0 else local * data_ranks
    eager = copy.copy(config)
    eager.compile = replace(config.compile, enable=False)
    memory = plan_memory(
        spec,
        eager,
        nproc=nproc,
        microbatches=global_batch // (local * data_ranks),
        documents=_even(training.seq_len, windows.documents) * local,
    )
    compute = plan_compute(
        steps=training.steps,
        windows_per_step=global_batch,
        seq_len=training.seq_len,
        windows=windows,
        flops_per_token=memory.flops_per_token,
        computed_flops_per_token=memory.matmul_flops * (nproc // data_ranks) / (local * training.seq_len),
        attention_forwards=memory.attention_forwards,
        shape=attention_shape(spec.model),
    )
    return RunPlan(
        config=config,
        name=config.model or f"{spec.name} {spec.flavor}",
        rope=spec.model.architecture.rope if isinstance(spec.model, DecoderModel.Config) else None,
        vocab_size=spec.model.vocab_size,
        nproc=nproc,
        shards=nproc // parallelism.data_parallel_replicate_degree,
        microbatches=global_batch // (local * data_ranks),
        windows=windows,
        memory=memory,
        compute=compute,
    )


def _model_spec(config: RunConfig, tokenizer_vocab: int | None) -> ModelSpec:
    if config.model_spec is not None and not config.model and not config.start_from:
        start.refuse_rope(config)
        return config.model_spec
    architecture = start.resolve_architecture(config, tokenizer_vocab=tokenizer_vocab)
    start.check_positions(config, architecture)
    return decoder_spec(architecture)


def _even(seq_len: int, documents: int) -> list[int]:
    """Return the lengths of a window's documents. All documents except the last document have the same length."""
    length = seq_len // documents
    return [length] * (documents - 1) + [seq_len - length * (documents - 1)]


def _checked(config: RunConfig, nproc: int) -> RunConfig:
    """Return the config with the rule in the place of ``{rule}``, after the checks of a run that need no dataset."""
    if nproc < 1:
        raise InputError(f"--nproc is {nproc}: it must be 1 or more")
    config = check_options(config, ranks=nproc)
    if config.training.enable_cpu_offload:
        raise InputError("training.enable_cpu_offload is on: plan supports only runs that keep the states on the GPU")
    if isinstance(config.activation_checkpoint, MemoryBudgetAC.Config):
        raise InputError(
            "activation_checkpoint is memory-budget, but the compiler decides its memory: "
            "plan supports selective, full and none"
        )
    return config
