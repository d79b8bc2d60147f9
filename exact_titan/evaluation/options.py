"""The options of the suites. The command line makes an option of every field, such as ``--ruler.haystack``."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SuiteOptions:
    """The options of all suites. The name of a field is the name of its suite."""

    # A field for every suite: ruler: RulerOptions = RulerOptions(), and so on.
