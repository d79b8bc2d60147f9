import dataclasses
import re

import pytest
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from exact_titan.errors import InputError
from exact_titan.models.architecture import PRESETS
from exact_titan.models.hf_config import make_config, read_architecture, with_rope, write_config
from exact_titan.models.rope import LinearScaling, Llama3Scaling, YarnScaling
from exact_titan.models.rope_change import RopeChange
from exact_titan.models.rope_change import with_rope as changed
from exact_titan.titan.model.rope import frequencies

LLAMA = PRESETS["Llama-3.1-8B"]
QWEN = PRESETS["Qwen2.5-7B"]
PLAIN = dataclasses.replace(PRESETS["SmolLM2-135M"], max_positions=8192, rope_theta=1e5)
LINEAR = dataclasses.replace(PLAIN, rope_scaling=LinearScaling(factor=4.0), max_positions=32_768)
YARN = dataclasses.replace(
    PLAIN, rope_scaling=YarnScaling(factor=2.0, original_positions=8192, truncate=False), max_positions=16_384
)

CHANGES = {
    "a larger theta": (PLAIN, {"theta": 5e5}, 5e5, None, 65_536),
    "a smaller theta": (PLAIN, {"theta": 1e4}, 1e4, None, 8192),
    "a larger theta and positions": (PLAIN, {"theta": 5e5, "max_positions": 131_072}, 5e5, None, 131_072),
    "positions": (PLAIN, {"max_positions": 131_072}, 1e5, None, 131_072),
    "theta of a scaled model": (LLAMA, {"theta": 8e6}, 8e6, LLAMA.rope_scaling, 131_072),
    "theta of a yarn model": (YARN, {"theta": 8e6}, 8e6, YARN.rope_scaling, 16_384),
    "linear": (PLAIN, {"scaling": "linear", "factor": 8.0}, 1e5, LinearScaling(factor=8.0), 65_536),
    "linear again": (LINEAR, {"scaling": "linear", "factor": 8.0}, 1e5, LinearScaling(factor=8.0), 65_536),
    "yarn": (
        PLAIN,
        {"scaling": "yarn", "factor": 8.0},
        1e5,
        YarnScaling(factor=8.0, original_positions=8192),
        65_536,
    ),
    "yarn and theta": (
        PLAIN,
        {"scaling": "yarn", "factor": 2.5, "theta": 1e6},
        1e6,
        YarnScaling(factor=2.5, original_positions=8192),
        20_480,
    ),
    "yarn of Qwen2.5": (
        QWEN,
        {"scaling": "yarn", "factor": 4.0, "original_positions": 32_768},
        1e6,
        YarnScaling(factor=4.0, original_positions=32_768),
        131_072,
    ),
    "yarn again, with the values of the model": (
        YARN,
        {"scaling": "yarn", "factor": 8.0, "beta_fast": 64.0},
        1e5,
        YarnScaling(factor=8.0, original_positions=8192, beta_fast=64.0, truncate=False),
        65_536,
    ),
    "llama3": (
        PLAIN,
        {"scaling": "llama3", "factor": 8.0, "high_freq_factor": 8.0},
        1e5,
        Llama3Scaling(factor=8.0, high_freq_factor=8.0, original_positions=8192),
        65_536,
    ),
    "llama3 again": (
        LLAMA,
        {"scaling": "llama3", "factor": 32.0},
        5e5,
        Llama3Scaling(factor=32.0, original_positions=8192),
        262_144,
    ),
    "llama3, fewer positions by the factor": (
        LLAMA,
        {"scaling": "llama3", "factor": 4.0, "max_positions": 200_000},
        5e5,
        Llama3Scaling(factor=4.0, original_positions=8192),
        200_000,
    ),
    "no scaling": (LLAMA, {"scaling": "none", "theta": 8e6}, 8e6, None, 65_536),
    "no scaling, the theta of the model": (LLAMA, {"scaling": "none"}, 5e5, None, 8192),
    "no scaling of a model without scaling": (PLAIN, {"scaling": "none"}, 1e5, None, 8192),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_options_change_rope_and_the_positions(name):
    model, options, theta, scaling, positions = CHANGES[name]
    change = RopeChange(**options)
    change.check()
    made = changed(model, change, window=65_536)
    assert (made.rope_theta, made.rope_scaling, made.max_positions) == (theta, scaling, positions)
    assert dataclasses.replace(
        made, rope_theta=model.rope_theta, rope_scaling=model.rope_scaling, max_positions=model.max_positions
    ) == model  # fmt: skip
    # A resume applies the same options to the model of the run.
    assert changed(made, change, window=65_536) == made


@pytest.mark.parametrize("name", CHANGES)
def test_transformers_reads_the_frequencies_of_the_change(name, tmp_path):
    model, options, *_ = CHANGES[name]
    made = changed(model, RopeChange(**options), window=65_536)
    # A file with keys that must not survive: transformers prefers them to the keys of the change.
    old = {**make_config(model, eos_token_id=7), "original_max_position_embeddings": 77, "rope_parameters": {"a": 1}}
    write_config(tmp_path, with_rope(old, made))
    assert read_architecture(tmp_path) == made
    config = AutoConfig.from_pretrained(tmp_path)
    (tmp_path / "expected").mkdir()
    write_config(tmp_path / "expected", make_config(made, eos_token_id=7))
    expected = LlamaRotaryEmbedding(AutoConfig.from_pretrained(tmp_path / "expected"))
    found = LlamaRotaryEmbedding(config)
    assert found.inv_freq.equal(expected.inv_freq)
    # Bit for bit: at position 131,072 one rounding of a frequency is 0.008 radians.
    assert found.inv_freq.equal(frequencies(made.rope_theta, made.head_dim, made.rope_scaling))
    assert found.attention_scaling == expected.attention_scaling
    assert config.max_position_embeddings == made.max_positions
    if isinstance(made.rope_scaling, YarnScaling):
        assert made.rope_scaling.factor * made.rope_scaling.original_positions == made.max_positions


def test_an_attention_factor_has_the_key_of_transformers_and_the_key_of_older_vllm(tmp_path):
    change = RopeChange(scaling="yarn", factor=4.0, attention_factor=1.5)
    written = make_config(changed(PLAIN, change, window=1), eos_token_id=None)["rope_scaling"]
    assert written["attention_factor"] == 1.5
    assert written["attn_factor"] * 1.138629436111989 == pytest.approx(1.5)  # 0.1 ln 4 + 1
    assert "attention_factor" not in make_config(
        changed(PLAIN, RopeChange(scaling="yarn", factor=4.0), window=1), eos_token_id=None
    )["rope_scaling"]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"factor": 4.0},
            "rope.factor is 4, but rope.scaling is keep: set --rope.scaling linear or yarn or llama3, or",
        ),
        ({"scaling": "none", "factor": 4.0}, "rope.factor is 4, but rope.scaling is none"),
        ({"original_positions": 64}, "rope.original_positions is 64, but rope.scaling is keep"),
        ({"scaling": "yarn"}, "rope.scaling is yarn, but rope.factor is missing: set --rope.factor"),
        (
            {"scaling": "linear", "factor": 2.0, "beta_fast": 16.0},
            "rope.beta_fast is 16, but rope.scaling is linear: set",
        ),
        (
            {"scaling": "llama3", "factor": 2.0, "attention_factor": 1.0},
            "rope.attention_factor is 1, but rope.scaling is",
        ),
        (
            {"scaling": "yarn", "factor": 2.0, "low_freq_factor": 1.0},
            "set --rope.scaling llama3, or leave rope.low_freq",
        ),
        (
            {"scaling": "yarn", "factor": 2.0, "max_positions": 9},
            "rope.max_positions is 9, but the positions of yarn are",
        ),
    ],
)
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        RopeChange(**options).check()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (LLAMA, {"scaling": "yarn", "factor": 4.0}, "rope.scaling is yarn, but the RoPE of the model is scaled already "
         "(llama3, factor 8 from 8,192 positions): set --rope.scaling llama3 with another --rope.factor"),
        (YARN, {"scaling": "linear", "factor": 4.0}, "is scaled already (yarn, factor 2 from 8,192 positions"),
        (YARN, {"scaling": "yarn", "factor": 4.0, "original_positions": 4096}, "rope.original_positions is 4096, but"),
        (PLAIN, {"scaling": "yarn", "factor": 4.0, "original_positions": 9000}, "rope.original_positions is 9000, "
         "but the model has 8192 positions: set 8192 or fewer"),
        (PLAIN, {"scaling": "yarn", "factor": 1.0001}, "rope.factor is 1.0001: 8192 original positions times"),
        (PLAIN, {"scaling": "linear", "factor": 1e9}, "rope.factor is 1000000000: 8192 original positions times"),
        (PLAIN, {"scaling": "yarn", "factor": 4.0, "beta_fast": 0.5}, "rope.beta_fast is 0.5: it must not be below"),
        (PLAIN, {"scaling": "llama3", "factor": 4.0, "low_freq_factor": 4.0}, "rope.high_freq_factor is 4: it must be"),
        (PLAIN, {"max_positions": 4096}, "rope.max_positions is 4096, but the model has 8192 positions: set 8192"),
        (YARN, {"max_positions": 65_536}, "rope.max_positions is 65536, but the model has a scaling (yarn, factor 2"),
    ],
)  # fmt: skip
def test_options_that_contradict_the_model_are_refused(model, options, message):
    change = RopeChange(**options)
    change.check()
    with pytest.raises(InputError, match=re.escape(message)):
        changed(model, change, window=65_536)
