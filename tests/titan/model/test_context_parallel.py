"""Context-parallel attention and the tensor-parallel loss against float64, on four ranks."""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from tests import warm_ranks
from tests.titan.model.parallel_ranks import KEY_HEADS

EPSILON = {"float64": 1e-14, "float32": 1e-6}


@pytest.fixture(scope="module")
def distances(tmp_path_factory) -> dict[str, list[dict[str, float]]]:
    """The distances of every rank by the name of the case."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    done = warm_ranks.run(4, "tests.titan.model.parallel_ranks", folder / "out.json", cwd=folder)
    assert done.codes == [0] * 4, done.stderr[-3000:]
    found = defaultdict(list)
    for result in json.loads((folder / "out.json").read_text()):
        found[result.pop("name")].append(result)
    return found


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("key_heads", KEY_HEADS)
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_attention_and_its_gradients_are_those_of_whole_windows(distances, ranks, key_heads, dtype):
    """Fewer key heads than ranks are repeated. The gradient of a key head is the sum over its copies."""
    every = distances[f"attention on {ranks} ranks, {key_heads} key heads, {dtype}"]
    assert len(every) == ranks
    for one in every:
        assert set(one) == {"output", "q", "k", "v"}
        assert max(one.values()) < EPSILON[dtype]


def test_the_weighted_gradient_of_a_divided_vocabulary_is_that_of_the_full_loss(distances):
    every = distances["loss of logits of 1"]
    assert len(every) == 4
    for one in every:
        assert max(one["loss"], one["cross_entropy"], one["gradient"], one["from_full"]) < 1.2e-7


def test_large_logits_cost_the_divided_loss_as_little_precision_as_the_full_loss(distances):
    for one in distances["loss of logits of 4"]:
        assert max(one["loss"], one["cross_entropy"]) < 1.2e-7
        assert 0 < one["gradient"] < 2 * one["full_gradient"] < 4e-7
