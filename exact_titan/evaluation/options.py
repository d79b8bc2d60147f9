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
class SuiteOptions:
    """The options of all suites. The name of a field is the name of its suite."""

    ruler: RulerOptions = RulerOptions()
