import dataclasses
import json
import re

import pytest
import torch
from transformers import AutoConfig, Qwen2Config, Qwen3Config, SmolLM3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from exact_titan.errors import InputError
from exact_titan.models.architecture import PRESETS
from exact_titan.models.hf_config import make_config, portable_config, read_architecture, read_config, write_config
from exact_titan.titan.model.decoder import decoder_spec
from tests.checkpoints import CHECKPOINTS, SIZES

# The config.json that transformers 4 writes for Llama 3.1 8B, without the keys that do not change the computation.
LLAMA_31_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
QWEN_25_05B = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def write(folder, config: dict) -> None:
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("config", "preset"), [(LLAMA_31_8B, "Llama-3.1-8B"), (QWEN_25_05B, "Qwen2.5-0.5B")], ids=["llama", "qwen2"]
)
def test_published_configs_are_the_presets(tmp_path, config, preset):
    write(tmp_path, config)
    assert read_architecture(tmp_path) == PRESETS[preset]


def test_the_keys_of_transformers_5_give_the_same_architecture(tmp_path):
    new = dict(LLAMA_31_8B)
    new["rope_parameters"] = new.pop("rope_scaling") | {"rope_theta": new.pop("rope_theta")}
    new["dtype"] = new.pop("torch_dtype")
    write(tmp_path, new)
    assert read_architecture(tmp_path) == PRESETS["Llama-3.1-8B"]


def test_the_old_name_of_rope_type_is_read(tmp_path):
    old = dict(LLAMA_31_8B)
    old["rope_scaling"] = {key.replace("rope_type", "type"): value for key, value in old["rope_scaling"].items()}
    write(tmp_path, old)
    assert read_architecture(tmp_path) == PRESETS["Llama-3.1-8B"]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_config_that_transformers_saves_is_read_back(tmp_path, name):
    config_type, options = CHECKPOINTS[name]
    config_type(
        **{**SIZES, **options}, architectures=[config_type.__name__.replace("Config", "ForCausalLM")]
    ).save_pretrained(tmp_path)
    architecture = read_architecture(tmp_path)
    assert architecture.family == config_type.model_type
    assert architecture.qkv_bias == (config_type is Qwen2Config)
    assert (architecture.dim, architecture.ffn_dim, architecture.n_layers) == (64, 96, 3)
    assert architecture.head_dim == options.get("head_dim", 16)
    assert architecture.n_kv_heads == options.get("num_key_value_heads", 2)
    assert architecture.tie_embeddings == options.get("tie_word_embeddings", config_type is SmolLM3Config)
    assert architecture.qk_norm == (config_type is Qwen3Config)
    assert architecture.layers_without_rope == ((1,) if config_type is SmolLM3Config else ())
    parameters = options.get("rope_parameters", {"rope_type": None})
    assert (architecture.rope_scaling and architecture.rope_scaling.kind) == parameters["rope_type"]
    assert architecture.rope_scaling is None or architecture.rope_scaling.factor == parameters["factor"]


@pytest.mark.parametrize("name", PRESETS)
def test_make_config_is_read_back_by_this_package_and_by_transformers(tmp_path, name):
    architecture = PRESETS[name]
    write_config(tmp_path, make_config(architecture, eos_token_id=7))
    assert read_architecture(tmp_path) == architecture
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.bos_token_id, config.eos_token_id) == (None, 7)
    config.save_pretrained(tmp_path / "again")
    assert read_architecture(tmp_path / "again") == architecture


def test_keys_that_old_files_omit_have_the_defaults_of_transformers(tmp_path):
    # Llama 1 has as many key and value heads as query heads, and the RoPE base 10,000.
    omitted = ("num_key_value_heads", "rope_scaling", "rope_theta", "rms_norm_eps", "tie_word_embeddings")
    write(tmp_path, {key: value for key, value in LLAMA_31_8B.items() if key not in omitted})
    expected = dataclasses.replace(
        PRESETS["Llama-3.1-8B"], n_kv_heads=32, rope_scaling=None, rope_theta=10_000.0, norm_eps=1e-6
    )
    assert read_architecture(tmp_path) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["Olmo2ForCausalLM"]}, "architectures is ['Olmo2ForCausalLM']: supported are"),
        ({"architectures": None}, "architectures is None"),
        (
            {"auto_map": {"AutoModel": "model.Model"}},
            "auto_map names code in the folder: code in a model folder is never run",
        ),
        ({"quantization_config": {"bits": 4}}, "quantization_config: quantized weights cannot be trained"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu': only 'silu' is supported"),
        ({"attention_bias": True}, "attention_bias is True: only False is supported"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has 'sliding_attention'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": "llama3"}, "rope_scaling is not a JSON object"),
        ({"rope_scaling": {"factor": 4.0}}, "rope_scaling.factor is 4.0, but rope_scaling has no rope_type"),
        ({"rope_scaling": {"rope_type": None}}, "rope_scaling.rope_type is None: supported are"),
        (
            {"rope_scaling": {"rope_type": "default", "type": "linear"}},
            "rope_scaling.rope_type is 'default' and rope_scaling.type is 'linear': remove one of them",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 8e6}, "rope_scaling": None},
            "rope_theta is 500000.0 and rope_parameters.rope_theta is 8000000.0: remove one of them",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
            "rope_scaling and rope_parameters are both set and give different frequencies",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}, "rope_scaling": None},
            "rope_parameters.full_attention is an object of one layer type",
        ),
        ({"rope_scaling": {**LLAMA_31_8B["rope_scaling"], "partial_rotary_factor": 0.5}}, "partial_rotary_factor is"),
        ({"rope_scaling": {**LLAMA_31_8B["rope_scaling"], "high_freq_factor": 1.0}}, "must be above low_freq_factor"),
        (
            {"original_max_position_embeddings": 4096},
            "original_max_position_embeddings is 4096 and rope_scaling.original_max_position_embeddings is 8192",
        ),
        ({"rope_theta": "500000"}, "rope_theta is '500000': it must be a number"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "4096"}, "hidden_size is '4096': it must be a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"rope_theta": True}, "rope_theta is True: it must be a number"),
        ({"hidden_size": 4100}, "hidden_size (4100) is not a multiple of num_attention_heads (32)"),
        ({"num_key_value_heads": 5}, "num_key_value_heads (5) does not divide num_attention_heads (32)"),
        ({"head_dim": 63}, "head_dim is 63: RoPE needs an even head_dim"),
        ({"architectures": [["LlamaForCausalLM"]]}, "architectures is [['LlamaForCausalLM']]"),
        ({"layer_types": 5}, "layer_types is 5: it must be a list"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan: it must be a number above 0"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps is inf: it must be a number above 0"),
        ({"rms_norm_eps": 1e30}, "rms_norm_eps is 1e+30: it must be a number above 0 and below 1"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05: it must be a number above 0"),
        ({"rope_theta": 10**400}, "rope_theta is 1000000"),
        ({"rope_theta": float("-inf")}, "rope_theta is -inf: it must be a number"),
        (
            {"vocab_size": 2**62},
            f"vocab_size is {2**62}: it must be a whole number of 1 or more and 2147483647 or less",
        ),
        ({"vocab_size": 10**4000}, "vocab_size is 1000000"),
        (
            {"num_hidden_layers": 10**9},
            "num_hidden_layers is 1000000000: it must be a whole number of 1 or more and 10000",
        ),
        ({"max_position_embeddings": 2**40}, "max_position_embeddings is 1099511627776"),
        ({"intermediate_size": -1}, "intermediate_size is -1"),
        ({"hidden_size": 4096.0}, "hidden_size is 4096.0: it must be a whole number"),
        ({"hidden_size": 2**30, "vocab_size": 2**30}, "the model would have"),
        ({"eos_token_id": {"a": 1}}, "eos_token_id is {'a': 1}: it must be a token id, or a list of token ids"),
        ({"bos_token_id": [1, "2"]}, "bos_token_id is [1, '2']"),
        ({"pad_token_id": 2**70}, "pad_token_id is 1180591620717411303424"),
        ({"model_type": ["llama"]}, "model_type is ['llama']: it must be a text"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false': it must be true or false"),
    ],
)
def test_unsupported_values_are_refused_by_name(tmp_path, changes, message):
    write(tmp_path, {**LLAMA_31_8B, **changes})
    with pytest.raises(InputError) as caught:
        read_architecture(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 500 + b"1" + b"}" * 500, b'{"a": "\xff"}', b"\0" * 40])
def test_a_config_that_is_no_plain_json_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json is not a readable JSON file") as refused:
        read_architecture(tmp_path)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sliding_window": 4096}, "sliding_window is 4096 .*: only null is supported"),
        ({}, "sliding_window is 4096 .*without the key: 4096"),
    ],
)
def test_a_sliding_window_is_refused(tmp_path, config, message):
    base = {**LLAMA_31_8B, "architectures": ["MistralForCausalLM"]}
    write(tmp_path, {**base, **config})
    with pytest.raises(InputError, match=message):
        read_architecture(tmp_path)
    write(tmp_path, {**base, "sliding_window": None})
    assert read_architecture(tmp_path).family == "mistral"


def test_the_layers_without_rope_of_smollm3(tmp_path):
    base = {**LLAMA_31_8B, "architectures": ["SmolLM3ForCausalLM"], "rope_scaling": None, "num_hidden_layers": 6}
    del base["rope_theta"]
    for keys, layers in (
        ({}, (3,)),
        ({"no_rope_layer_interval": 3}, (2, 5)),
        ({"no_rope_layers": [1, 0, 1, 1, 1, 0], "no_rope_layer_interval": 3}, (1, 5)),
    ):
        write(tmp_path, {**base, **keys})
        architecture = read_architecture(tmp_path)
        assert (architecture.layers_without_rope, architecture.rope_theta) == (layers, 2_000_000.0)
    for wrong in ([1, 0], [1, 0, 1, 1, 1, 2], "1", 3):
        write(tmp_path, {**base, "no_rope_layers": wrong})
        with pytest.raises(InputError, match=r"no_rope_layers is .* it must be a list of 6 values"):
            read_architecture(tmp_path)


def test_a_config_behind_a_link_out_of_the_folder_is_refused(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    write(tmp_path, LLAMA_31_8B)
    (folder / "config.json").symlink_to("../config.json")
    with pytest.raises(InputError, match=r"config\.json is a link to .*, which is outside of"):
        read_architecture(folder)


def test_a_folder_without_a_readable_config_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        read_architecture(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no config\.json: it is not a Hugging Face model folder"):
        read_architecture(tmp_path)
    for content in ("{", "[]", "\xff"):
        (tmp_path / "config.json").write_bytes(content.encode("latin1"))
        with pytest.raises(InputError, match=r"config\.json is not a"):
            read_architecture(tmp_path)


L3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SPELLINGS = {
    "linear": {"rope_scaling": {"type": "linear", "factor": 4}},
    "linear, parameters of transformers 5": {
        "rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 5e5}
    },
    "yarn": {"rope_scaling": YARN},
    "yarn from the positions of the file": {"rope_theta": 5e5, "rope_scaling": {"type": "yarn", "factor": 2}},
    "yarn, original positions at the top": {
        "original_max_position_embeddings": 64,
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0},
    },
    "yarn, parameters of transformers 5": {"rope_parameters": {**YARN, "rope_theta": 5e5}},
    "yarn, not truncated": {"rope_scaling": {**YARN, "truncate": False}},
    "yarn with its betas": {"rope_scaling": {**YARN, "beta_fast": 8, "beta_slow": 2.0}},
    "yarn, betas of null and 0": {"rope_scaling": {**YARN, "beta_fast": None, "beta_slow": 0}},
    "yarn with an attention factor": {"rope_scaling": {**YARN, "attention_factor": 0.9}},
    "yarn of DeepSeek": {"rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.5}},
    "yarn, mscale alone": {"rope_scaling": {**YARN, "mscale": 0.707}},
    "yarn, factor 1": {"rope_scaling": {**YARN, "factor": 1.0}},
    "yarn, few original positions": {"rope_scaling": {**YARN, "original_max_position_embeddings": 3}},
    "no rope keys": {},
    "theta": {"rope_theta": 5e5},
    "theta, an integer": {"rope_theta": 500_000},
    "theta and a null scaling": {"rope_theta": 5e5, "rope_scaling": None},
    "scaling of transformers 4": {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **L3}},
    "scaling before transformers 4.43": {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **L3}},
    "both names of the type": {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "type": "llama3", **L3}},
    "theta inside the scaling": {"rope_scaling": {"rope_type": "llama3", "rope_theta": 5e5, **L3}},
    "parameters of transformers 5": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **L3}},
    "default parameters": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "parameters without a type": {"rope_parameters": {"rope_theta": 5e5}},
    "parameters, theta at the top": {"rope_theta": 5e5, "rope_parameters": {"rope_type": "llama3", **L3}},
    "parameters and an empty scaling": {
        "rope_scaling": {},
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **L3},
    },
    "scaling and parameters, the same": {
        "rope_scaling": {"rope_type": "llama3", "rope_theta": 5e5, **L3},
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **L3},
    },
    "original positions at both places": {
        "original_max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **L3},
    },
}


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_rope_gives_the_frequencies_of_transformers(tmp_path, family, spelling):
    sizes = {**SIZES, "model_type": family, "architectures": [f"{family.capitalize()}ForCausalLM"]}
    write(tmp_path, {**sizes, **SPELLINGS[spelling]})
    rotary = {"llama": LlamaRotaryEmbedding, "qwen2": Qwen2RotaryEmbedding}[family]
    theirs = rotary(AutoConfig.from_pretrained(tmp_path))
    architecture = read_architecture(tmp_path)
    cache = decoder_spec(architecture).model.layers[0].attention.rope.build().cache
    positions = torch.arange(architecture.max_positions)[None]
    cos_sin = torch.cat([half[0, :, : architecture.head_dim // 2] for half in theirs(torch.zeros(1), positions)], -1)
    assert torch.equal(cache, cos_sin)
    # The keys of an export give the same frequencies again, in this package and in transformers.
    (tmp_path / "export").mkdir()
    exported = portable_config(read_config(tmp_path), architecture, dtype="float32")
    write(tmp_path / "export", exported)
    assert read_architecture(tmp_path / "export") == architecture
    again = rotary(AutoConfig.from_pretrained(tmp_path / "export"))
    assert torch.equal(again.inv_freq, theirs.inv_freq)
    assert again.attention_scaling == theirs.attention_scaling
    assert "rope_parameters" not in exported
    assert "rope_theta" not in (exported["rope_scaling"] or {})


def test_the_positions_of_yarn_are_the_factor_times_the_original_positions(tmp_path):
    """Qwen's instructions for YaRN leave max_position_embeddings as the file has the key."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    for positions, expected in ((32_768, 131_072), (40_960, 131_072), (131_072, 131_072), (163_840, 163_840)):
        write(tmp_path, {**QWEN_25_05B, "max_position_embeddings": positions, "rope_scaling": yarn})
        assert read_architecture(tmp_path).max_positions == expected


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "linear"}, "rope_scaling.factor is missing"),
        ({"type": "linear", "factor": 0}, "rope_scaling.factor is 0: it must be a number above 0"),
        ({"type": "yarn"}, "rope_scaling.factor is missing"),
        ({**YARN, "factor": None}, "rope_scaling.factor is missing"),
        ({**YARN, "factor": 0}, "rope_scaling.factor is 0: it must be a number above 0"),
        ({**YARN, "factor": 0.5}, "rope_scaling.factor is 0.5: the factor of 'yarn' must be 1 or more"),
        ({**YARN, "rope_theta": 1.0}, "rope_theta is 1: 'yarn' needs a base above 1"),
        (
            {**YARN, "beta_fast": 1, "beta_slow": 2},
            "rope_scaling.beta_fast is 1: beta_fast must not be below beta_slow",
        ),
        ({**YARN, "beta_fast": "32"}, "rope_scaling.beta_fast is '32': it must be a number"),
        ({**YARN, "attention_factor": 0}, "rope_scaling.attention_factor is 0: it must be a number above 0"),
        ({**YARN, "truncate": "no"}, "rope_scaling.truncate is 'no': it must be true or false"),
        ({**YARN, "attn_factor": 2.0}, "attn_factor gives an attention factor of 2.27726 in vLLM, but transformers"),
        ({**YARN, "extrapolation_factor": 2.0}, "extrapolation_factor is 2.0: transformers ignores this key"),
        (
            {**YARN, "original_max_position_embeddings": 6.5},
            "original_max_position_embeddings is 6.5: it must be a whole",
        ),
    ],
)
def test_wrong_values_of_a_scaling_are_refused_by_name(tmp_path, scaling, message):
    write(tmp_path, {**SIZES, "architectures": ["LlamaForCausalLM"], "rope_scaling": scaling})
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        read_architecture(tmp_path)
    assert str(tmp_path / "config.json") in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "proportional"])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", ["type", "rope_type"])
def test_other_kinds_of_scaling_are_refused_by_name(tmp_path, kind, key, name):
    config = {**LLAMA_31_8B, key: {name: kind, "factor": 4.0}}
    write(tmp_path, config)
    with pytest.raises(InputError, match=f"{key}.rope_type is '{kind}': supported are 'default', 'linear', 'yarn'"):
        read_architecture(tmp_path)
