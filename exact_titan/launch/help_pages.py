"""The help of a training run: one screen of the options that people set, and a page of all options."""

import shutil
import textwrap
from collections.abc import Iterator

from exact_titan.launch.arguments import Arguments
from exact_titan.launch.options import Option, table

TRAIN = "exact-titan train [--nproc N] CONFIG [--section.option VALUE …]"
MODULE = "torchrun --nproc_per_node=N -m exact_titan.train --config CONFIG [--section.option VALUE …]"

_INTRODUCTION = "CONFIG is a TOML file, a recipe, or a name that `exact-titan configs` lists."

_EXAMPLES = {
    TRAIN: "exact-titan train --nproc 8 stage_4k --model Qwen2.5-0.5B --dataloader.dataset_path packed/books-4k",
    MODULE: "torchrun --nproc_per_node=8 -m exact_titan.train --config stage_4k --model Qwen2.5-0.5B \\\n"
    "  --dataloader.dataset_path packed/books-4k",
}

_OFTEN = {
    "Model and data": {
        "model": "Hugging Face folder of the first weights",
        "start_from": "output folder of the previous stage",
        "dataloader.dataset_path": "packed dataset, or a mixture A=3,B=1",
        "training.seq_len": "window length of the dataset, in tokens",
        "rope.scaling": "RoPE for longer windows: {choices}",
    },
    "Training": {
        "training.steps": "optimizer steps",
        "training.local_batch_size": "windows of a process at a time",
        "training.global_batch_size": "windows of a step; -1: one local batch per process",
        "optimizer.lr": "learning rate",
        "lr_scheduler.warmup_steps": "steps of the linear warmup",
        "activation_checkpoint": "full: least memory; none: fastest",
        "debug.seed": "seed of the weights of a model from scratch",
    },
    "EXACT": {
        "loss.rule": "{choices}",
        "loss.alpha": "extra weight of the tail",
        "loss.threshold": "first context of the tail; None: a quarter of the window",
        "loss.refresh_steps": "N: count and recompute the weights every N steps",
    },
    "Output": {
        "dump_folder": "folder of the run; {rule} is the rule",
        "checkpoint.interval": "steps between checkpoints",
        "validator.freq": "steps between validations",
        "metrics.log_freq": "steps between log lines",
        "export": "new folder for the final Hugging Face model",
    },
}


def page(given: Arguments, usage: str) -> str:
    """Return the page that ``given`` asks for, with the values in force as defaults.

    Args:
        given: arguments with ``help`` set. Without a config, the defaults are those of ``from_scratch``.
        usage: :data:`TRAIN` or :data:`MODULE`.
    """
    if given.source is None:
        given = Arguments(recipe="from_scratch", help=given.help)
        of = "the recipe from_scratch"
    else:
        of = str(given.source)
    lines = [f"usage: {usage}", "", f"Train a model. {_INTRODUCTION}", f"The values in brackets are from {of}."]
    lines += _all(given) if given.help == "help-all" else _often(given, usage)
    return "\n".join(lines)


def _often(given: Arguments, usage: str) -> Iterator[str]:
    width = max(len(name) for names in _OFTEN.values() for name in names) + 2
    for number, (title, names) in enumerate(_OFTEN.items()):
        yield f"\n{title}:"
        if usage == TRAIN and number == 0:
            yield f"  {'--nproc':<{width}}  processes on this machine [its GPUs; 1 without a GPU]"
        for name, text in names.items():
            text = text.replace("{choices}", ", ".join(table().options[name].choices))
            yield f"  {'--' + name:<{width}}  {text} [{_value(given, name)}]"
    yield f"\nExample: {_EXAMPLES[usage]}"
    yield "--help-all shows all options."


def _all(given: Arguments) -> Iterator[str]:
    width = min(shutil.get_terminal_size().columns, 120)
    section = None
    for option in sorted(table().options.values(), key=lambda option: "." in option.name):
        if option.hidden:
            continue
        if section != (section := option.name.rpartition(".")[0]):
            yield f"\n[{section}]" if section else ""
        value = _value(given, option.name)
        yield f"  {_form(option)}  [{value}]" if not option.policies else f"  {_form(option)}"
        if option.help:
            yield textwrap.fill(option.help, width, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _form(option: Option) -> str:
    if option.type == "bool":
        section, dot, last = option.name.rpartition(".")
        return f"--{option.name}, --{section}{dot}no_{last}"
    kind = "|".join(option.choices) or {"list": "A,B,…", "ints": "1,2,…", "words": "A B …"}.get(
        option.type, option.type.upper()
    )
    return f"--{option.name} {kind}"


def _value(given: Arguments, name: str) -> str:
    value = given.value(name)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(map(str, value)) or "empty"
    return "none" if value == "" else str(value)
