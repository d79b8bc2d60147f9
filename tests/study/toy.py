"""A toy study: 2 arms, 2 seeds, a shared start, 4 steps of a tiny model. It trains in the ranks of tests.warm_ranks."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from exact_titan import study_configs, study_machine
from exact_titan.study import session
from exact_titan.study.plan import Planned
from exact_titan.study.spec import Study, read_study
from tests import warm_ranks

STUDY = """
name = "toy"
baseline = "standard"
seeds = [0, 1]
primary = "tail"
parallel = 2

[options]
recipe = "from_scratch"
[options.architecture]
dim = 32
n_layers = 2
n_heads = 4
n_kv_heads = 2
ffn_dim = 64
max_positions = 128
[options.dataloader]
dataset_path = "DATASET"
[options.training]
seq_len = 64
steps = 4
global_batch_size = 4
mixed_precision_param = "float32"
[options.optimizer]
lr = 1e-2
[options.lr_scheduler]
warmup_steps = 2
[options.validator]
freq = 2
[options.metrics]
log_freq = 1
enable_tensorboard = false
[options.checkpoint]
interval = 2
async_mode = "disabled"

[[stages]]
name = "start"
shared = true
[stages.options.loss]
rule = "standard"

[[stages]]
name = "extension"

[arms.standard.loss]
rule = "standard"
[arms.exact.loss]
rule = "exact"
alpha = 0.5

[[outcomes]]
name = "tail"
select = "tail"
"""

ONE_STAGE = STUDY.replace(
    STUDY[STUDY.index("[[stages]]") : STUDY.index("[arms.standard")], '[[stages]]\nname = "only"\n'
)
"""The same study without a shared start."""


def write(folder: Path, dataset: Path, *changes: tuple[str, str], text: str = STUDY) -> Path:
    """Write the study with other texts in ``folder/study.toml``. Return the file."""
    for old, new in (*changes, ("DATASET", str(dataset))):
        assert old in text, old
        text = text.replace(old, new)
    file = folder / "study.toml"
    file.write_text(text)
    return file


@dataclass
class WarmRun:
    """A run in the ranks of tests.warm_ranks, with the methods that a study needs."""

    launch: warm_ranks.Launch
    close: Callable[[], None]
    _code: int | None = None

    def poll(self) -> int | None:
        if self._code is None and not self.launch.running():
            assert self.launch.codes is not None
            self._code = self.launch.codes[0]
            self.close()
        return self._code

    def send_signal(self, sig: int, /) -> None:
        if self.poll() is None:
            self.launch.send_signal(sig)


@dataclass
class ToyMachine:
    """Completes configs in this process, and trains in warm ranks.

    Attributes:
        where: the file of the study.
        parallel: runs at one time.
        started: the runs that have been started, in their order.
        on_start: called with the number of started runs after every start.
    """

    where: str
    parallel: int = 2
    started: list[Planned] = field(default_factory=list)
    on_start: Callable[[int, WarmRun], None] = lambda number, run: None

    def complete(self, planned: list[Planned]):
        return study_configs.complete_records(planned, nproc=1, where=self.where)

    def starter(self, planned: list[Planned]):
        return self.start, self.parallel

    def start(self, one: Planned, log: Path) -> WarmRun:
        argv = study_machine.run_argv(one, where=self.where)
        place = log.with_suffix("")
        stack = contextlib.ExitStack()
        work = log.parent / f".{place.name}"
        work.mkdir(exist_ok=True)
        launch = stack.enter_context(warm_ranks.background(1, "exact_titan.train", *argv, cwd=work))
        log.unlink(missing_ok=True)
        log.symlink_to(work / "ranks.log")
        run = WarmRun(launch, stack.close)
        self.started.append(one)
        self.on_start(len(self.started), run)
        return run


def train(file: Path, out: Path, machine: ToyMachine | None = None) -> int:
    """Run the study as ``exact-titan study run`` does."""
    machine = machine or ToyMachine(str(file))
    study: Study = read_study(file)
    return session.run(study, out, where=str(file), complete=machine.complete, machine=machine.starter)


def contents(out: Path) -> Iterator[Path]:
    """Yield the files with the results of all runs."""
    yield from sorted(out.rglob("metrics.jsonl"))
    yield from sorted(out.rglob("validation/*.safetensors"))
