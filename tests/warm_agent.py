"""A program with an elastic agent (torchrun, ``exact-titan train``) in the background, forked from the warm server.

The agent and the signals are real: :mod:`tests.forked_ranks` replaces only the start of Python and the imports.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from tests import warm_ranks
from tests.support import torchrun_command


class WarmAgent(warm_ranks.Run):
    """A running elastic agent with its ranks, as :class:`tests.support.BackgroundRun`.

    Attributes:
        agent: the process of the agent.
    """

    def __init__(self, agent: warm_ranks.Launch) -> None:
        self.agent = agent

    def output(self) -> str:
        """Return the output so far."""
        return self.agent.output()

    def workers(self) -> list[int]:
        """Return the process ids of the living ranks, ascending. Every rank leads a session."""
        (pid,) = self.agent.pids
        children = Path(f"/proc/{pid}/task/{pid}/children")
        found = map(int, children.read_text().split()) if children.exists() else []
        return sorted(child for child in found if _leads_a_session(child))

    def running(self) -> bool:
        """Return whether the agent still runs."""
        return self.agent.running()

    def end(self, timeout: float = 120) -> int:
        """Wait until the agent has ended by itself. Return the exit code of the agent."""
        return self.agent.end(timeout)[0]

    def kill(self) -> None:
        """Send SIGKILL to the agent and all ranks, as in a failure of the machine."""
        workers = self.workers()
        self.agent.kill()
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _leads_a_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


@contextlib.contextmanager
def background(module: str, *arguments: object, cwd: Path) -> Iterator[WarmAgent]:
    """Start :func:`tests.warm_ranks.run` with an agent in the background of the test.

    The end of the context kills the agent, and ranks that still run.
    """
    log = cwd / "agent.log"
    with contextlib.closing(warm_ranks.launch(0, module, arguments, cwd, log, log, agent=True)) as started:
        run = WarmAgent(started)
        try:
            yield run
        finally:
            run.kill()


def torchrun(nproc: int, *arguments: str, cwd: Path, timeout: float = 300) -> warm_ranks.Finished:
    """Run torchrun as :func:`tests.support.torchrun` does. All processes are forks."""
    _, _, module, *rest = torchrun_command(nproc, *arguments)
    return warm_ranks.run(0, module, *rest, cwd=cwd, timeout=timeout, agent=True)


def background_torchrun(nproc: int, *arguments: str, cwd: Path) -> AbstractContextManager[WarmAgent]:
    """Start :func:`torchrun` in the background of the test."""
    _, _, module, *rest = torchrun_command(nproc, *arguments)
    return background(module, *rest, cwd=cwd)
