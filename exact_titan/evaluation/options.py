"""The options of the suites. The command line makes an option of every field, such as ``--ruler.haystack``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

NolimaTask = Literal[
    "base", "onehop", "twohop", "hard", "distractor", "multiple_choice", "only_direct", "chain_of_thought"
]


@dataclass(frozen=True)
class NolimaOptions:
    """Options of the suite NoLiMa.

    Args:
        folder: Folder with NoLiMa's needle sets and books: a download of the data set amodaresi/NoLiMa, or a clone of
            github.com/adobe-research/NoLiMa with the data. Adobe's research licence applies (docs/nolima.md). Default:
            the needle sets and books of this package. Their scores are not comparable with published scores.
        tasks: Variants of the benchmark.
        depths: Number of places of a needle between the start and the end of the context. The paper has 26, and 11 from
            64K tokens.
    """

    folder: Path | None = None
    tasks: tuple[NolimaTask, ...] = ("base",)
    depths: int = 26


@dataclass(frozen=True)
class SuiteOptions:
    """The options of all suites. The name of a field is the name of its suite."""

    nolima: NolimaOptions = NolimaOptions()
