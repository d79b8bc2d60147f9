import pytest

from exact_titan.models.architecture import PRESETS, REPOSITORIES


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen2.5-0.5B", 0.494),
        ("Qwen2.5-1.5B", 1.54),
        ("Qwen2.5-3B", 3.09),
        ("Qwen2.5-7B", 7.62),
        ("Qwen3-0.6B", 0.596),
        ("Qwen3-1.7B", 1.72),
        ("Qwen3-4B", 4.02),
        ("Qwen3-8B", 8.19),
        ("Llama-3.2-1B", 1.24),
        ("Llama-3.2-3B", 3.21),
        ("Llama-3.1-8B", 8.03),
        ("SmolLM2-135M", 0.135),
        ("SmolLM3-3B", 3.08),
    ],
)
def test_presets_have_the_published_number_of_parameters(name, billions):
    digits = 3 if billions < 1 else 2
    assert round(PRESETS[name].num_parameters() / 1e9, digits) == billions


def test_every_preset_has_a_repository_on_the_hub():
    assert REPOSITORIES.keys() == PRESETS.keys()
