"""The options of prompts and of the suites.

The command line makes an option of every field of :class:`SuiteOptions`, such as ``--ruler.haystack``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

Template = Literal["plain", "dolly", "chat"]
"""The text around a prompt: none, Dolly's headings, or the chat template of the tokenizer."""


@dataclass(frozen=True)
class RulerOptions:
    """Options of the suite ruler."""

    tasks: Annotated[tuple[str, ...], arg(metavar="TASKS…", help_behavior_hint="(default: all)")] = ()
    """Tasks to prepare, such as niah_single_1 vt."""

    haystack: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: chapters of novels)")] = None
    """Folder of .txt files, the prose around the needles. Scores on another haystack are not comparable."""

    squad: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: no task qa_1)")] = None
    """dev-v2.0.json of SQuAD, for the task qa_1."""

    hotpotqa: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: no task qa_2)")] = None
    """hotpot_dev_distractor_v1.json of HotpotQA, for the task qa_2."""


@dataclass(frozen=True)
class NolimaOptions:
    """Options of the suite nolima."""

    tasks: Annotated[tuple[str, ...], arg(metavar="TASKS…")] = ("base",)
    """Tasks: base, onehop, twohop, hard, distractor, multiple_choice, only_direct, chain_of_thought."""

    folder: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: of this package)")] = None
    """Needle sets and books of NoLiMa, as docs/nolima.md describes. Scores on other needle sets are not comparable."""

    depths: int = 26
    """Places of a needle from the start to the end of the context. The paper has 26, and 11 from 64K tokens."""


@dataclass(frozen=True)
class QaOptions:
    """Options of the suite qa."""

    tasks: Annotated[tuple[str, ...], arg(metavar="TASKS…", help_behavior_hint="(default: all six)")] = ()
    """Tasks to prepare: mmlu arc_challenge hellaswag winogrande piqa gsm8k."""

    folder: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: the Hugging Face hub)")] = None
    """Folder with the questions as local files, in the layout of docs/qa.md."""

    questions: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: --examples)")] = None
    """Questions of a task. 0 asks all questions."""

    shots: Annotated[tuple[str, ...], arg(metavar="TASK=N…", help_behavior_hint="")] = ()
    """Few-shot examples, such as arc_challenge=0 gsm8k=8. By default mmlu=5 arc_challenge=25 hellaswag=10 winogrande=5
    piqa=0 gsm8k=5."""


@dataclass(frozen=True)
class ProbeOptions:
    """Options of the suite probe."""

    haystack: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: chapters of novels)")] = None
    """Folder of .txt files, the prose around the evidence. Scores on another haystack are not comparable."""


@dataclass(frozen=True)
class SuiteOptions:
    """The options of all suites. The name of a field is the name of its suite."""

    ruler: RulerOptions = RulerOptions()
    nolima: NolimaOptions = NolimaOptions()
    probe: ProbeOptions = ProbeOptions()
    qa: QaOptions = QaOptions()
