"""The options of the loss: values outside the definition of the method, and a missing dataset."""

import pytest

from exact_titan.errors import InputError
from exact_titan.titan.loss import ExactLoss


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"alpha": -0.1}, "loss.alpha is -0.1"),
        ({"gamma": -1.0}, "loss.gamma is -1.0"),
        ({"eps": 0.0}, "loss.eps is 0.0"),
        ({"min_count": -1}, "loss.min_count is -1"),
        ({"threshold": 65}, "loss.threshold is 65: with a window of 64"),
        ({"threshold": 33}, "loss.threshold is 33"),
        ({"threshold": 0}, "loss.threshold is 0"),
        ({"refresh_steps": -1}, "loss.refresh_steps is -1"),
        ({"alpha": float("nan")}, "loss.alpha is nan"),
        ({"gamma": 1e9}, "loss.alpha is 0.15 and loss.gamma is 1000000000.0: the weights of .* are not finite"),
        ({"rule": "rndom"}, "loss.rule is 'rndom': choose one of standard, .*; did you mean random"),
    ],
)
def test_bad_options_are_refused_by_name(dataset, options, name):
    with pytest.raises(InputError, match=f"^{name}"):
        ExactLoss.Config(dataset_path=str(dataset.folder), **options).build()


def test_a_loss_without_a_dataset_is_refused():
    with pytest.raises(InputError, match=r"^loss\.dataset_path is empty"):
        ExactLoss.Config().build()
