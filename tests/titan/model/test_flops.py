import pytest
import torch

from exact_titan.titan.model.decoder import LlamaSizes, decoder_spec
from exact_titan.titan.model.flops import attention_flops, attention_pairs, attention_shape, matmul_flops_per_token


def llama(**options):
    sizes = LlamaSizes(dim=32, n_layers=3, n_heads=4, n_kv_heads=2, ffn_dim=48, **options)
    return decoder_spec(sizes.architecture(seq_len=64, tokenizer_vocab=100)).model


def built(config):
    with torch.device("meta"):
        return config.build()


@pytest.mark.parametrize("lengths", [[64], [1] * 64, [20, 43, 1]])
def test_pairs_are_the_entries_of_the_documents_causal_masks(lengths):
    masks = [torch.ones(length, length, dtype=torch.bool).tril() for length in lengths]
    assert attention_pairs(lengths) == torch.block_diag(*masks).sum()


def test_a_document_as_long_as_the_window_costs_the_causal_half_of_what_torchtitan_counts():
    config = llama()
    window = 64
    (_, whole), (_, without) = (config.get_nparams_and_flops(built(config), length) for length in (window, 0))
    ours = attention_flops(attention_pairs([window]), **attention_shape(config))
    # With the diagonal, the causal half is (L + 1) / 2L.
    assert ours * 2 * window == (whole - without) * window * (window + 1)


@pytest.mark.parametrize("tied", [True, False])
def test_a_token_costs_6_for_every_parameter_that_is_multiplied(tied):
    config = llama(tie_embeddings=tied)
    attention = 32 * (4 + 2 * 2) * 8 + 32 * 32
    norms = 2 * 32
    parameters = 3 * (attention + 3 * 32 * 48 + norms) + 32 + 100 * 32
    assert matmul_flops_per_token(config, built(config)) == 6 * parameters


def test_a_given_head_dim_is_used():
    config = llama()
    assert attention_shape(config) == {"n_layers": 3, "n_heads": 4, "head_dim": 8}
    config.layers[0].attention.head_dim = 16
    assert attention_shape(config)["head_dim"] == 16
