"""The logits equal the logits of transformers on the same weights. transformers is an independent implementation."""

import itertools

import pytest
import torch
from torchtitan.models.common.attention import create_varlen_metadata_for_document
from transformers import AutoModelForCausalLM

from tests.checkpoints import CHECKPOINTS, load_decoder, transformers_model


def positions_of(lengths: list[int]) -> torch.Tensor:
    return torch.cat([torch.arange(length) for length in lengths])[None]


@torch.no_grad()
def logits(model, tokens_BL: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    positions = positions_of(lengths)
    return model(tokens_BL, positions, create_varlen_metadata_for_document(positions))


@torch.no_grad()
def reference_logits(model, tokens_BL: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Return the logits of transformers, for each document alone."""
    return torch.cat([model(document).logits for document in tokens_BL.split(lengths, dim=1)], dim=1)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_of_tiny_checkpoints_equal_transformers(name, tmp_path):
    reference = transformers_model(name)
    reference.save_pretrained(tmp_path)
    model = load_decoder(tmp_path)
    tokens = torch.randint(256, (1, 200), generator=torch.Generator().manual_seed(1))
    expected = reference_logits(reference, tokens, [200])
    # With very small logits the comparison could not fail.
    assert expected.std() > 0.5
    torch.testing.assert_close(logits(model, tokens, [200]), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_packed_window_equals_each_document_alone(name, tmp_path):
    reference = transformers_model(name)
    reference.save_pretrained(tmp_path)
    tokens = torch.randint(256, (1, 200), generator=torch.Generator().manual_seed(1))
    lengths = [1, 70, 29, 100]
    expected = reference_logits(reference, tokens, lengths)
    torch.testing.assert_close(logits(load_decoder(tmp_path), tokens, lengths), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["llama with scaled RoPE", "qwen2", "qwen3", "smollm3"])
def test_gradients_equal_transformers(name, tmp_path):
    reference = transformers_model(name)
    reference.save_pretrained(tmp_path)
    model = load_decoder(tmp_path)
    tokens = torch.randint(256, (1, 65), generator=torch.Generator().manual_seed(1))
    inputs, labels = tokens[:, :-1], tokens[0, 1:]
    positions = positions_of([64])
    ours = model(inputs, positions, create_varlen_metadata_for_document(positions))
    torch.nn.functional.cross_entropy(ours[0], labels).backward()
    torch.nn.functional.cross_entropy(reference(inputs).logits[0], labels).backward()
    theirs = dict(reference.named_parameters())
    names = {"wq": "q_proj", "wk": "k_proj", "wv": "v_proj"}
    for layer, (short, long), leaf in itertools.product(range(3), names.items(), ("weight", "bias")):
        parameter = getattr(getattr(model.layers[str(layer)].attention.qkv_linear, short), leaf)
        if parameter is None:
            continue
        expected = theirs[f"model.layers.{layer}.self_attn.{long}.{leaf}"].grad
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if "RoPE" in name or "YaRN" in name])
def test_without_rope_scaling_the_logits_differ(name, tmp_path):
    """The tests above can fail: the positions of the checkpoint are long enough for the scaled frequencies."""
    scaled, plain = transformers_model(name), transformers_model(name.partition(" with")[0])
    plain.load_state_dict(scaled.state_dict())
    tokens = torch.randint(256, (1, 200), generator=torch.Generator().manual_seed(1))
    difference = reference_logits(scaled, tokens, [200]) - reference_logits(plain, tokens, [200])
    assert difference.abs().max() > 0.1


@pytest.mark.slow
def test_logits_of_a_real_model_on_real_text_equal_transformers(smollm2, book_chapters):
    from transformers import AutoTokenizer

    # For logits of 40 float32 has an error of more than 1e-4, in transformers too. Both are compared.
    exact, single = (AutoModelForCausalLM.from_pretrained(smollm2, dtype=d) for d in (torch.float64, torch.float32))
    tokenizer, model = AutoTokenizer.from_pretrained(smollm2), load_decoder(smollm2)
    for chapter, lengths in {3: [1000], 5: [400, 1, 199, 400]}.items():
        tokens = tokenizer(book_chapters[chapter][:9000], return_tensors="pt").input_ids[:, :1000]
        assert tokens.shape == (1, 1000)
        expected, theirs = (reference_logits(one, tokens, lengths).double() for one in (exact, single))
        error = (logits(model, tokens, lengths).double() - expected).abs().max()
        assert error < max(1e-4, 1.2 * (theirs - expected).abs().max())
        assert error < 2e-4
