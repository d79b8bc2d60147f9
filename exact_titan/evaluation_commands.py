"""The commands of ``exact-titan eval``. Each command imports its modules itself, because ``--help`` must be fast."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from exact_titan.evaluation.options import SuiteOptions, Template

_SUITE_OPTIONS = SuiteOptions()


def prepare(
    suites: Annotated[Positional[tuple[str, ...]], arg(metavar="SUITES…", help_behavior_hint="")],
    *,
    model: Path,
    out: Path,
    lengths: Annotated[tuple[int, ...], arg(metavar="TOKENS…", help_behavior_hint="")] = (),
    examples: int = 100,
    seed: int = 0,
    template: Template = "plain",
    options: Annotated[SuiteOptions, arg(name="")] = _SUITE_OPTIONS,
) -> None:
    """Make the prompts of suites for the tokenizer of a model. Prompts that exist already are found again.

    The prompts are in OUT/prompts. A prompt fills 98 % of its length or more, with the room of the answer. A prompt
    that does not fit is refused and never cut.

    Example: exact-titan eval prepare ruler --model outputs/run-a --lengths 4096 8192 --out outputs/evaluation

    Args:
        suites: ruler, nolima, probe, qa.
        model: A run, a checkpoint or a Hugging Face folder. Only its tokenizer is read.
        out: Folder of the evaluation.
        lengths: Context lengths in tokens, with the room of the answer, such as 4096 8192. The suite qa has no lengths.
        examples: Examples of a task at a length. Fewer examples are the first of more examples.
        seed: Seed of the examples.
        template: Text around a prompt. plain: none. dolly: the headings of Dolly. chat: the tokenizer's chat template.
        options: See SuiteOptions.
    """
    from exact_titan.evaluation.prepare import prepare as prepare_suites
    from exact_titan.evaluation.prepare import tokenizer_folder
    from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer

    prepare_suites(
        suites,
        tokenizer=PromptTokenizer(tokenizer_folder(model), template),
        lengths=lengths,
        examples=examples,
        seed=seed,
        options=options,
        out=out,
    )


COMMANDS: dict[str, Callable[..., int | None]] = {"prepare": prepare}
