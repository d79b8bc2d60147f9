"""Real training: one or two ranks, FSDP2 over gloo, checkpoints on the disk."""

import json
import shutil
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from exact_titan.dataset import PackedDataset
from exact_titan.dataset.lengths import read_lengths
from exact_titan.exposure import bucket_weights
from exact_titan.runs.metrics_log import read_records
from exact_titan.runs.target_losses import read_target_losses
from exact_titan.sampling.balance import attention_work, deal
from exact_titan.sampling.order import WindowOrder
from exact_titan.titan.loader import PackedDataLoader
from exact_titan.titan.step_clock import PARTS
from tests import warm_ranks
from tests.support import VOCAB, pack_lengths

RUNNER = "tests.titan.recorded_runs"
SIZES = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64}
MODEL = [argument for name, size in SIZES.items() for argument in (f"--architecture.{name}", str(size))]


def argv(dataset: PackedDataset, folder: Path, *options: str, steps: int = 10) -> list[str]:
    return [
        *["--config", "from_scratch", "--dump_folder", str(folder), "--dataloader.dataset_path", str(dataset.folder)],
        *["--training.seq_len", str(dataset.window), "--training.steps", str(steps), "--debug.seed", "7"],
        *["--training.mixed_precision_param", "float32", "--training.global_batch_size", "4"],
        *[
            "--optimizer.lr",
            "1e-2",
            "--lr_scheduler.warmup_steps",
            "2",
            "--metrics.log_freq",
            "1",
            "--checkpoint.no-enable",
        ],
        *["--metrics.no-enable-tensorboard", "--validator.no-enable", *MODEL, *options],
    ]


def record(nproc: int, folder: Path, *specs: dict) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(json.dumps(specs))
    out = folder / "out.json"
    done = warm_ranks.run(nproc, RUNNER, folder / "spec.json", out, cwd=folder)
    assert done.codes == [0] * nproc, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(out.read_text())


def collectives(operators: dict[str, int]) -> Counter[str]:
    return Counter({name: count for name, count in operators.items() if "c10d" in name})


def reads(operators: dict[str, int]) -> int:
    return sum(count for name, count in operators.items() if "c10d" not in name)


def losses(result: dict) -> list[tuple[float, float]]:
    return [(float.fromhex(step["loss"]), float.fromhex(step["grad_norm"])) for step in result["steps"]]


@pytest.fixture(scope="module")
def two_ranks(dataset, tmp_path_factory) -> dict:
    """The records of one launch of two ranks. The launch trains every config that the tests below compare."""
    folder = tmp_path_factory.mktemp("two_ranks")
    own = ["--override.imports", "exact_titan.titan.overrides.document_attention"]
    # torchtitan's trainer does not tell the loader the step size, so its windows stay in their order.
    in_order = "--dataloader.no-balance"
    packed = f'exact_titan.titan.overrides.packed_dataloader={{"dataset_path": "{dataset.folder}"}}'
    exact = f'exact_titan.titan.overrides.exact_loss={{"dataset_path": "{dataset.folder}"}}'
    stock = ["--module", "tests.titan.stock_recipes", "--dump_folder", str(folder), "--hf_assets_path"]
    stock += [str(dataset.folder / "tokenizer"), "--training.seq_len", str(dataset.window), *own, packed]
    specs = [
        {"name": "standard", "trainer": "exact", "argv": argv(dataset, folder, in_order, "--loss.rule", "standard")},
        {"name": "alpha 0", "trainer": "exact", "argv": argv(dataset, folder, in_order, "--loss.alpha", "0")},
        {"name": "exact", "trainer": "exact", "argv": argv(dataset, folder, in_order)},
        {"name": "balanced", "trainer": "exact", "argv": argv(dataset, folder)},
        {"name": "stock", "trainer": "stock", "argv": ["--config", "small_llama", *stock]},
        {"name": "stock with exact", "trainer": "stock", "argv": ["--config", "small_llama", *stock, exact]},
    ]
    for name, rule, refresh in (("quiet exact", "exact", 3), ("quiet standard", "standard", 0)):
        quiet = ["--metrics.log_freq", "100", "--loss.rule", rule, "--loss.refresh_steps", str(refresh)]
        specs.append(
            {"name": name, "trainer": "exact", "count_operators": True, "argv": argv(dataset, folder, *quiet, steps=5)}
        )
    stock_quiet = ["--config", "small_llama", "--metrics.log_freq", "100", "--training.steps", "5", *stock]
    seen = ["--metrics.enable-tensorboard", "--validator.enable", "--validator.freq", "3"]
    seen += ["--validator.context_gain", "8,24", "--dump_folder"]
    for rule in ("standard", "exact"):
        shown = [*seen, str(folder / f"shown_{rule}"), "--loss.rule", rule]
        specs.append({"name": f"shown {rule}", "trainer": "exact", "argv": argv(dataset, folder, *shown, steps=3)})
    replicated = ["--parallelism.data_parallel_replicate_degree", "2", "--parallelism.data_parallel_shard_degree", "1"]
    specs.append({"name": "replicated", "trainer": "exact", "argv": argv(dataset, folder, *replicated)})
    specs.append({"name": "quiet stock", "trainer": "stock", "count_operators": True, "argv": stock_quiet})
    return record(2, folder, *specs) | {"folder": folder}


@pytest.mark.parametrize("name", ["standard", "alpha 0"])
def test_weights_of_1_train_bit_for_bit_like_torchtitans_own_trainer_and_loss(two_ranks, name):
    assert len(two_ranks["stock"]["steps"]) == 10
    assert two_ranks[name]["steps"] == two_ranks["stock"]["steps"]


def test_exact_and_standard_train_differently(two_ranks):
    assert two_ranks["exact"]["steps"] != two_ranks["standard"]["steps"]
    first, last = losses(two_ranks["exact"])[0][0], losses(two_ranks["exact"])[-1][0]
    assert last < first - 0.1


def test_balanced_steps_give_the_losses_of_steps_in_order(two_ranks):
    assert two_ranks["balanced"]["steps"] != two_ranks["exact"]["steps"]
    for one, other in zip(losses(two_ranks["balanced"]), losses(two_ranks["exact"]), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_replicated_parameters_give_the_losses_of_sharded_parameters(two_ranks):
    for one, other in zip(losses(two_ranks["replicated"]), losses(two_ranks["exact"]), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_overrides_in_an_unmodified_trainer_give_the_losses_of_this_packages_trainer(two_ranks):
    assert two_ranks["stock with exact"]["steps"] == two_ranks["exact"]["steps"]


def test_a_step_that_does_not_refresh_adds_no_collective_and_no_read_by_the_host(two_ranks):
    """The reference is torchtitan's trainer. The steps do not log. Exact starts a refresh at the end of step 3."""
    stock = two_ranks["quiet stock"]["operators"]
    for name in ("quiet exact", "quiet standard"):
        for step in ("2", "5"):
            ours, theirs = two_ranks[name]["operators"][step], stock[step]
            assert collectives(theirs)
            assert collectives(ours) == collectives(theirs)
            assert reads(ours) <= reads(theirs)
            # torchtitan searches the document borders on the device. Here the loader provides the borders.
            assert "aten.nonzero.default" in theirs
            assert "aten.nonzero.default" not in ours
    refreshing = collectives(two_ranks["quiet exact"]["operators"]["3"]) - collectives(stock["3"])
    assert dict(refreshing) == {"c10d.allreduce_.default": 1}


def test_counters_over_two_ranks_equal_a_count_of_the_dataset_by_hand(two_ranks, dataset):
    result = two_ranks["quiet exact"]
    order = WindowOrder(len(dataset), dataset.manifest.fingerprint, seed=0)
    bounds = dataset.buckets.lower_bounds.tolist()

    def by_hand(windows: int) -> list[int]:
        counts = [0] * len(bounds)
        for place in range(windows):
            window = dataset[order[place]]
            for position, label in zip(window["positions"].tolist(), window["labels"].tolist(), strict=True):
                if label != -100:
                    counts[max(b for b, bound in enumerate(bounds) if bound <= position + 1)] += 1
        return counts

    assert result["windows"] == 5 * 4
    # The refresh summed the counts over the ranks after step 3. Later counts of rank 0 wait for the next refresh.
    refreshed = by_hand(3 * 4)
    assert [a <= b for a, b in zip(refreshed, result["counts"], strict=True)] == [True] * len(bounds)
    assert sum(refreshed) < sum(result["counts"]) < sum(by_hand(5 * 4))
    # The refreshed weights start from the counts of the dataset.
    counts = dataset.counts + torch.tensor(refreshed)
    expected = bucket_weights(counts, dataset.buckets.lower_bounds, threshold=16)
    assert result["weights"] == [weight.hex() for weight in expected.tolist()]


def scalars(run: Path, images: Sequence[str] = ("validation_loss_by_context",)) -> dict[str, dict[int, float]]:
    (folder,) = {file.parent for file in run.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder)).Reload()
    assert sorted(events.Tags()["images"]) == list(images)
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_exposure_weights_and_plain_cross_entropy_per_bucket(two_ranks, dataset):
    standard, exact = (scalars(two_ranks["folder"] / f"shown_{rule}") for rule in ("standard", "exact"))
    labels = dataset.buckets.labels()
    order = WindowOrder(len(dataset), dataset.manifest.fingerprint, seed=0)
    weights = bucket_weights(dataset.counts, dataset.buckets.lower_bounds, threshold=16).tolist()
    for step in (1, 2, 3):
        windows = [dataset[order[place]] for place in range(4 * (step - 1), 4 * step)]
        context = torch.cat([window["positions"][window["labels"] != -100] + 1 for window in windows])
        counts = torch.bincount(dataset.buckets.index(context), minlength=len(labels)).tolist()
        for label, count, weight in zip(labels, counts, weights, strict=True):
            assert exact[f"exposure/share/{label}"][step] == pytest.approx(count / sum(counts), rel=1e-6)
            assert exact[f"exposure/weight/{label}"][step] == pytest.approx(weight, rel=1e-6)
            assert standard[f"exposure/weight/{label}"][step] == 1
        mass = [count * weight for count, weight in zip(counts, weights, strict=True)]
        assert exact["exposure/tail_loss_mass"][step] == pytest.approx(sum(mass[2:]) / sum(mass), rel=1e-6)
        # With plain loss, the loss equals the cross-entropy in total, and the mean over the buckets.
        plain = standard["loss_metrics/cross_entropy"][step]
        assert plain == pytest.approx(standard["loss_metrics/global_avg_loss"][step], rel=1e-5)
        pairs = zip(labels, counts, strict=True)
        by_context = sum(standard[f"loss_by_context/{label}"][step] * count for label, count in pairs)
        assert plain == pytest.approx(by_context / sum(counts), rel=1e-5)
    # Both runs start from the same weights and read the same windows, so the plain loss of the first step is equal.
    assert exact["loss_metrics/cross_entropy"][1] == standard["loss_metrics/cross_entropy"][1]
    assert exact["loss_metrics/global_avg_loss"][1] > exact["loss_metrics/cross_entropy"][1]


def flops_per_token(windows: list[dict[str, torch.Tensor]]) -> float:
    """Return the FLOPs per token for MODEL and these windows, by hand. Position p attends to p + 1 tokens."""
    layer = 32 * (4 + 2 * 2) * 8 + 32 * 32 + 3 * 32 * 64 + 2 * 32
    parameters = 2 * layer + 32 + VOCAB * 32
    positions = torch.stack([window["positions"] for window in windows])
    forward = 2 * 2 * 8 * 4 * 2 * (positions + 1).double().mean().item()
    return 6 * parameters + 3 * forward


def test_flops_count_the_documents_of_all_ranks(two_ranks, dataset):
    logged = scalars(two_ranks["folder"] / "shown_exact")
    order = WindowOrder(len(dataset), dataset.manifest.fingerprint, seed=0)
    for step in (1, 2, 3):
        windows = [dataset[order[place]] for place in range(4 * (step - 1), 4 * step)]
        found = logged["tflops"][step] * 1e12 / logged["throughput/tokens_per_second_per_device"][step]
        assert found == pytest.approx(flops_per_token(windows), rel=1e-6)
        assert found != pytest.approx(flops_per_token(windows[::2]), rel=1e-6)
    # The CPU has no known peak FLOP/s.
    assert "mfu_percent" not in logged


def test_tensorboard_shows_the_health_of_the_run(two_ranks, dataset):
    logged = scalars(two_ranks["folder"] / "shown_exact")
    parts = {part: logged[f"step_time/{part}_seconds"] for part in PARTS}
    loaders = [
        PackedDataLoader.Config(dataset_path=str(dataset.folder)).build(
            dp_world_size=2, dp_rank=rank, seq_len=dataset.window, local_batch_size=1
        )
        for rank in range(2)
    ]
    for one in loaders:
        one.rounds_per_step = 2
    streams = [iter(one) for one in loaders]
    for step in (1, 2, 3):
        assert 0 < parts["data"][step] < parts["forward_backward"][step]
        assert parts["optimizer"][step] > 0
        assert parts["checkpoint"][step] == 0
        rounds = [[float((next(s)[0]["cu_seqlens"].diff().long() ** 2).sum()) for s in streams] for _ in range(2)]
        waited = sum(max(work) for work in rounds) / sum(sum(work) / 2 for work in rounds)
        assert logged["imbalance/attention"][step] == pytest.approx(waited)
        assert 0 <= logged["imbalance/data_seconds"][step] <= parts["data"][step] / 2
        assert logged["progress/tokens_left"][step] == (3 - step) * 4 * dataset.window
    # Every step logs, so the parts belong to one step. The sum of the slowest parts may exceed the time of one rank.
    for step in (2, 3):
        assert sum(part[step] for part in parts.values()) < 1.5 * logged["time_metrics/end_to_end_seconds"][step]
    assert set(logged["progress/hours_left"]) == {2, 3}
    assert 0 < logged["progress/hours_left"][2] < 60 / 3600
    assert logged["progress/hours_left"][3] == 0


def test_flops_restart_after_a_log_and_a_validation(dataset, tmp_path):
    """torchtitan's token count does the same. The run logs at steps 1 and 4, and validates after step 3."""
    options = ["--metrics.enable-tensorboard", "--metrics.log_freq", "4", "--validator.enable", "--validator.freq", "3"]
    record(1, tmp_path, {"name": "run", "trainer": "exact", "argv": argv(dataset, tmp_path, *options, steps=4)})
    logged = scalars(tmp_path)
    order = WindowOrder(len(dataset), dataset.manifest.fingerprint, seed=0)
    assert set(logged["tflops"]) == {1, 4}
    for step in (1, 4):
        windows = [dataset[order[place]] for place in range(4 * (step - 1), 4 * step)]
        found = logged["tflops"][step] * 1e12 / logged["throughput/tokens_per_second_per_device"][step]
        assert found == pytest.approx(flops_per_token(windows), rel=1e-6)


def test_validation_is_the_plain_cross_entropy_of_every_validation_window_once(two_ranks, dataset, tmp_path):
    """2 ranks give the values of 1 rank, in total and per bucket. 2 ranks cannot divide the windows evenly."""
    val = PackedDataset(dataset.folder, "val")
    assert len(val) % 2 == 1
    one = ["--metrics.enable-tensorboard", "--validator.enable", "--validator.freq", "3"]
    one += ["--validator.context_gain", "8,24"]
    record(1, tmp_path, {"name": "one", "trainer": "exact", "argv": argv(dataset, tmp_path, *one, steps=3)})
    folders = [tmp_path, two_ranks["folder"] / "shown_exact"]
    (single,), (double,) = (read_records(folder, "validation") for folder in folders)
    assert double["cross_entropy"] == pytest.approx(single["cross_entropy"], rel=1e-5)
    assert double["windows"] == single["windows"]
    counts = dict(zip(dataset.buckets.labels(), val.counts.tolist(), strict=True))
    for label, count in counts.items():
        assert double["buckets"][label]["targets"] == count
        assert double["buckets"][label] == pytest.approx(single["buckets"][label], rel=1e-5)
    mean = sum(double["buckets"][label]["cross_entropy"] * count for label, count in counts.items())
    assert double["cross_entropy"] == pytest.approx(mean / sum(counts.values()), rel=1e-5)
    tail = {label: count for label, count in counts.items() if int(label.split("-")[0]) >= 16}
    assert double["tail"]["targets"] == sum(tail.values())
    mean = sum(double["buckets"][label]["cross_entropy"] * count for label, count in tail.items())
    assert double["tail"]["cross_entropy"] == pytest.approx(mean / sum(tail.values()), rel=1e-5)
    assert double["below_tail"]["targets"] == sum(counts.values()) - sum(tail.values())
    # The context gain: the same targets in the tail, and as many as have 24 tokens or more.
    for piece in ("8", "24"):
        context = torch.cat(
            [window["positions"][window["labels"] != -100] + 1 for window in map(val.__getitem__, range(len(val)))]
        )
        assert double["context_gain"][piece]["targets"] == int((context >= max(16, int(piece))).sum())
        assert double["context_gain"][piece]["gain"] == pytest.approx(single["context_gain"][piece]["gain"], abs=1e-5)
        assert double["context_gain"][piece]["seconds"] > 0

    # The cross-entropy of every target.
    one, two = (read_target_losses(folder, 3) for folder in folders)
    assert one is not None
    assert two is not None
    assert (one.windows, one.threshold, one.step) == (two.windows, 16, 3)
    assert one.windows.fingerprint == dataset.manifest.fingerprint
    for name in ("bucket", "document", "place"):
        assert np.array_equal(getattr(one, name), getattr(two, name))
    np.testing.assert_allclose(one.cross_entropy, two.cross_entropy, rtol=1e-3)
    assert two.cross_entropy.mean() == pytest.approx(double["cross_entropy"], rel=1e-5)
    assert np.bincount(two.bucket).tolist() == val.counts.tolist()
    # Every target of every window once, in order. A document that is cut by a border keeps its number.
    windows = [val[k] for k in range(len(val))]
    places = [k * val.window + np.flatnonzero(window["labels"] != -100) for k, window in enumerate(windows)]
    assert two.place.tolist() == np.concatenate(places).tolist()
    lengths = read_lengths(dataset.folder, "val", val.record.documents)
    assert np.bincount(two.document).tolist() == (lengths - 1).tolist()


def test_uneven_ranks_and_accumulation_give_the_gradients_of_one_rank(tmp_path):
    """Four windows, the last nearly empty. 2 ranks run with and without accumulation and balance. 1 rank also runs."""
    dataset = pack_lengths(tmp_path, [60, 70, 40, 30, 8], seq_len=64)
    assert len(dataset) == 4
    supervised = [int((dataset[k]["labels"] != -100).sum()) for k in range(4)]
    assert min(supervised) < 20

    def spec(name: str, batch: int, *more: str) -> dict:
        options = ["--training.local_batch_size", str(batch), "--loss.alpha", "2", *more]
        gradients = str(tmp_path / f"{name}.pt")
        return {
            "name": name,
            "trainer": "exact",
            "gradients": gradients,
            "argv": argv(dataset, tmp_path, *options, steps=1),
        }

    record(1, tmp_path / "one", spec("1x4", 4), spec("1x1x4", 1))
    in_order = "--dataloader.no-balance"
    two = [spec("2x2", 2), spec("2x1x2", 1), spec("2x2 in order", 2, in_order), spec("2x1x2 in order", 1, in_order)]
    record(2, tmp_path / "two", *two)
    # The order is not balanced already.
    order = WindowOrder(len(dataset), dataset.manifest.fingerprint, seed=0)
    work = [attention_work(dataset, order[place]) for place in range(4)]
    for batch in (1, 2):
        assert deal(work, ranks=2, batch=batch).flatten().tolist() != [0, 1, 2, 3]
    reference = torch.load(tmp_path / "1x4.pt")
    assert sum(gradient.abs().sum() for gradient in reference) > 0
    for name in ("1x1x4", "2x2", "2x1x2", "2x2 in order", "2x1x2 in order"):
        for one, other in zip(reference, torch.load(tmp_path / f"{name}.pt"), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("refresh", "mixed"),
    [pytest.param(0, False, marks=pytest.mark.slow), (2, False), (2, True)],
)
def test_a_killed_run_resumes_bit_for_bit(dataset, tmp_path, refresh, mixed):
    """SIGKILL ends the run after step 5. The checkpoint is from step 3, inside a refresh interval."""
    datasets = []
    if mixed:
        other = pack_lengths(tmp_path / "other", [100] * 20, seq_len=64, seed=3)
        datasets = ["--dataloader.dataset_path", f"{dataset.folder}=2,{other.folder}=1"]

    def options(name: str) -> list[str]:
        saved = [*datasets, "--checkpoint.enable", "--checkpoint.interval", "3", "--checkpoint.async_mode", "disabled"]
        saved += ["--loss.refresh_steps", str(refresh)]
        return argv(dataset, tmp_path / name, *saved, steps=8)

    unbroken = record(2, tmp_path, {"name": "run", "trainer": "exact", "argv": options("unbroken")})["run"]
    spec = [{"name": "run", "trainer": "exact", "argv": options("broken"), "kill_after": 5}]
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    killed = warm_ranks.run(2, RUNNER, tmp_path / "spec.json", tmp_path / "none.json", cwd=tmp_path)
    assert -signal.SIGKILL in killed.codes, killed.stderr[-3000:]
    assert not (tmp_path / "none.json").exists()
    assert sorted(path.name for path in (tmp_path / "broken" / "checkpoint").iterdir()) == ["step-3"]
    shutil.copytree(tmp_path / "broken", tmp_path / "alone")
    resumed = record(2, tmp_path, {"name": "run", "trainer": "exact", "argv": options("broken")})["run"]
    assert [step["step"] for step in resumed["steps"]] == [4, 5, 6, 7, 8]
    assert resumed["steps"] == unbroken["steps"][3:]
    for key in ("weights", "windows"):
        assert resumed[key] == unbroken[key]
    # Learning rate, tokens seen, losses, exposure: of all steps, because a resumed run continues metrics.jsonl.
    assert list(resumed["metrics"]) == list("12345678")
    assert resumed["metrics"] == unbroken["metrics"]
    if refresh:
        assert resumed["counts"] == unbroken["counts"]
        assert sum(unbroken["counts"]) > 0
        # One rank sums in another order. The losses are therefore close, and the counts are equal.
        alone = record(1, tmp_path, {"name": "run", "trainer": "exact", "argv": options("alone")})["run"]
        for one, other in zip(losses(alone), losses(unbroken)[3:], strict=True):
            assert one == pytest.approx(other, rel=1e-4)
        for key in ("weights", "windows", "counts"):
            assert alone[key] == unbroken[key]
