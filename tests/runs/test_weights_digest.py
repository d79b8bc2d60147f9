"""The hash of all weights of a Hugging Face folder. tests/runs/test_export.py has the hash of checkpoints."""

import torch
from safetensors.torch import save_file

from exact_titan.runs import weights_digest as module
from exact_titan.runs.weights_digest import weights_digest


def test_equal_weights_have_equal_hashes(tmp_path, monkeypatch):
    weights = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}

    def digest(name: str, tensors: dict[str, torch.Tensor], **options: dict[str, str]) -> str | None:
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors", **options)
        return weights_digest(tmp_path / name)

    one = digest("one", weights)
    assert one is not None
    assert digest("other metadata", weights, metadata={"format": "pt"}) == one
    assert digest("another value", {**weights, "a": weights["a"] + 1e-3}) != one
    assert digest("another shape", {**weights, "a": weights["a"].view(3, 2)}) != one
    assert digest("another dtype", {**weights, "b": weights["b"].half()}) != one
    monkeypatch.setattr(module, "LARGEST_BYTES", 20)
    assert weights_digest(tmp_path / "one") is None


def test_a_folder_without_weights(tmp_path):
    assert weights_digest(tmp_path) is None
