"""The options of the suite, checked."""

from exact_titan.errors import InputError, did_you_mean
from exact_titan.evaluation.options import QaOptions
from exact_titan.evaluation.suites.qa.tasks import TASKS


def check_tasks(options: QaOptions) -> tuple[str, ...]:
    """Return the names of the tasks in the order of tables.

    Raises:
        InputError: if there is no such task, or if the number of questions is negative.
    """
    for name in options.tasks:
        if name not in TASKS:
            raise InputError(
                f"--qa.tasks: there is no task {name!r}{did_you_mean(name, TASKS)}; the tasks are {', '.join(TASKS)}"
            )
    if options.questions is not None and options.questions < 0:
        raise InputError(f"--qa.questions {options.questions}: name a number from 0 on; 0 asks all questions")
    return tuple(name for name in TASKS if name in (options.tasks or TASKS))


def shots_of(options: QaOptions) -> dict[str, int]:
    """Return the number of few-shot examples of every task.

    Raises:
        InputError: if an entry of ``--qa.shots`` is not TASK=N.
    """
    shots = {name: task.shots for name, task in TASKS.items()}
    for entry in options.shots:
        name, _, number = entry.partition("=")
        if name not in shots or not number.isdecimal():
            raise InputError(
                f"--qa.shots {entry}: an entry is TASK=N, such as hellaswag=0, and the tasks are {', '.join(shots)}"
            )
        shots[name] = int(number)
    return shots
