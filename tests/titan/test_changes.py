import pytest

from exact_titan.titan.changes import _global_batch


@pytest.mark.parametrize(
    ("degrees", "batch"),
    [
        ({}, 16),
        ({"context": 2}, 8),
        ({"context": 2, "tensor": 4}, 2),
        ({"context": 0}, 16),  # a record of somebody else
    ],
)
def test_the_default_batch_has_the_windows_of_the_data_parallel_ranks(degrees, batch):
    options = {"training.global_batch_size": -1, "training.local_batch_size": 2}
    options |= {f"parallelism.{kind}_parallel_degree": degree for kind, degree in degrees.items()}
    assert _global_batch(options, 8) == batch
    assert _global_batch({**options, "training.global_batch_size": 6}, 8) == 6
