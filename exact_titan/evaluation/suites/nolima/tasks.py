"""The tasks: which needle set a task reads, and what the task adds."""

from dataclasses import dataclass, field

from exact_titan.evaluation.suites.nolima.needle_sets import NeedleSetRules


@dataclass(frozen=True)
class Task:
    """A task of the suite.

    Attributes:
        file: needle set of the task.
        rules: the demands of the task on its needle set.
        last_line: whether only the last line of an answer counts.
    """

    file: str
    rules: NeedleSetRules = field(default_factory=NeedleSetRules)
    last_line: bool = False


TASKS = {
    "base": Task("needle_set.json"),
    "onehop": Task("needle_set.json", NeedleSetRules(kinds=("onehop",))),
    "twohop": Task("needle_set.json", NeedleSetRules(kinds=("twohop",))),
    "hard": Task("needle_set_hard.json"),
    "distractor": Task("needle_set_w_Distractor.json", NeedleSetRules(distractors=True)),
    "multiple_choice": Task("needle_set_MC.json", NeedleSetRules(choices=True)),
    "only_direct": Task("needle_set_ONLYDirect.json", NeedleSetRules(kinds=("direct",))),
    "chain_of_thought": Task("needle_set_w_CoT.json", last_line=True),
}
"""The tasks by name. The paper's main table is the task ``base``."""
