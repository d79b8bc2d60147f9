"""The end of the elastic agent (torchrun, or ``exact-titan train``) before the end of its ranks.

A rank that outlives its agent would continue the training, and nobody would see its end or stop it. SIGKILL of the
agent, the kernel's out-of-memory killer, or SIGHUP without a handler leaves such ranks.

1. Every rank finds its agent when the rank starts (:func:`find_agent`).
2. A thread looks once a second whether the agent still runs.
3. After the end of the agent, all ranks save and stop as after a signal. A run before its first step ends at once.
4. If a save does not end within :data:`SAVE_SECONDS`, the process ends without the save.

The module does not use the kernel's parent-death signal (``PR_SET_PDEATHSIG``): a shell script may stand between the
agent and the rank, and the rank could not distinguish this signal from a second signal of a person.
"""

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from exact_titan.system import processes
from exact_titan.titan.signals import StopSignals, exit_at_once

SAVE_SECONDS = 600.0
"""Time for the save after the end of the agent. The agent itself gives its ranks the same time after a signal."""

_LOOK_SECONDS = 1.0
_RUN_ID = "TORCHELASTIC_RUN_ID"


@dataclass(frozen=True)
class Agent:
    """A process that has started the rank.

    Attributes:
        process: process id.
        started: :func:`exact_titan.system.processes.started` of the process. None: the process has ended.
    """

    process: int
    started: int | None

    def has_ended(self) -> bool:
        """Return whether the process has ended."""
        return self.started is None or processes.started(self.process) != self.started


def find_agent() -> Agent | None:
    """Return the elastic agent of this rank. None: no agent has started this process, or a container hides the agent.

    The agent gives its run id to the processes that it starts, and does not have the run id itself. The agent is
    therefore the first process above this process without the run id. If that process is not a Python program, the
    agent ended before this call, and the kernel has given this process another parent.
    """
    run = os.environ.get(_RUN_ID)
    if run is None:
        return None
    process = os.getppid()
    while f"{_RUN_ID}={run}" in processes.environment(process):
        process = processes.parent(process)
    if process == 0:
        return None
    is_python = any("python" in Path(word).name for word in processes.words(process)[:1])
    return Agent(process, processes.started(process) if is_python else None)


def watch_agent(signals: StopSignals) -> None:
    """Start the thread that stops the run after the end of its agent. Without an agent, start no thread."""
    agent = find_agent()
    if agent is not None:
        threading.Thread(target=_watch, args=(agent, signals), name="end of the agent", daemon=True).start()


def _watch(agent: Agent, signals: StopSignals) -> None:
    while not agent.has_ended():
        time.sleep(_LOOK_SECONDS)
    what = f"The end of the launcher (process {agent.process})"
    if not signals.has_callback:
        exit_at_once(f"{what} before the first step", 1)
    if signals.are_over:
        return
    giving_up = threading.Timer(SAVE_SECONDS, lambda: _give_up(what, signals))
    giving_up.daemon = True
    giving_up.start()
    signals.ask(what)


def _give_up(what: str, signals: StopSignals) -> None:
    if not signals.are_over:
        exit_at_once(f"{what}, and no save within {SAVE_SECONDS:.0f} s; the last complete checkpoint counts", 1)
