"""The options of the suites. The command line makes an option of every field, such as ``--ruler.haystack``."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProbeOptions:
    """Options of the evidence probe.

    Args:
        haystack: Folder with .txt files, the text around the evidence. Default: public-domain chapters of this package.
    """

    haystack: Path | None = None


@dataclass(frozen=True)
class SuiteOptions:
    """The options of all suites. The name of a field is the name of its suite."""

    # A field for every suite: ruler: RulerOptions = RulerOptions(), and so on.
    probe: ProbeOptions = ProbeOptions()
