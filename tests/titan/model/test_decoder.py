from dataclasses import replace

import pytest
import torch

from exact_titan.errors import InputError
from exact_titan.models.architecture import PRESETS
from exact_titan.models.hf_weights import native_name
from exact_titan.titan.model.decoder import LlamaSizes, check_vocabulary, decoder_spec

SIZES = {"dim": 32, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64}


def test_the_vocabulary_is_the_tokenizers_unless_it_is_given():
    assert LlamaSizes(**SIZES).architecture(seq_len=8, tokenizer_vocab=99).vocab_size == 99
    assert LlamaSizes(**SIZES, vocab_size=128).architecture(seq_len=8, tokenizer_vocab=99).vocab_size == 128


def test_a_model_may_have_more_positions_than_the_window():
    """A later stage then extends the window."""
    assert LlamaSizes(**SIZES).architecture(seq_len=8, tokenizer_vocab=99).max_positions == 8
    assert LlamaSizes(**SIZES, max_positions=32).architecture(seq_len=8, tokenizer_vocab=99).max_positions == 32


def test_tied_embeddings_are_one_parameter():
    counts = {}
    for tied in (True, False):
        sizes = LlamaSizes(**SIZES, tie_embeddings=tied)
        model = decoder_spec(sizes.architecture(seq_len=8, tokenizer_vocab=100)).model.build()
        counts[tied] = sum(parameter.numel() for parameter in model.parameters())
    assert counts[False] - counts[True] == 100 * 32


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_model_has_the_parameters_of_its_architecture(name):
    architecture = PRESETS[name]
    with torch.device("meta"):
        model = decoder_spec(architecture).model.build()
    assert sum(parameter.numel() for parameter in model.parameters()) == architecture.num_parameters()
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    if architecture.tie_embeddings:
        del shapes["lm_head.weight"]
    assert shapes == {native_name(key): shape for key, shape in architecture.tensors().items()}


def test_a_vocabulary_that_lacks_some_of_the_datasets_ids_is_refused():
    model = decoder_spec(LlamaSizes(vocab_size=98).architecture(seq_len=8, tokenizer_vocab=98)).model
    check_vocabulary(model, tokenizer_vocab=98)
    with pytest.raises(InputError, match=r"^the model's vocabulary has 98 ids, but the dataset's tokenizer 99"):
        check_vocabulary(model, tokenizer_vocab=99)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"n_heads": 7}, "architecture.n_heads is 7"),
        ({"dim": 24, "n_heads": 8}, "architecture.n_heads is 8"),
        ({"n_kv_heads": 3}, "architecture.n_kv_heads is 3"),
        ({"n_layers": 0}, "architecture.n_layers is 0"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(shape, message):
    with pytest.raises(InputError, match=f"^{message}"):
        LlamaSizes(**shape).architecture(seq_len=8, tokenizer_vocab=99)


def test_all_layers_share_one_table_of_rope():
    architecture = LlamaSizes(n_layers=4).architecture(seq_len=64, tokenizer_vocab=256)
    spec = decoder_spec(replace(architecture, layers_without_rope=(1,)))
    model = spec.model.build()
    model.to_empty(device="cpu")  # makes a table for every layer
    model.init_weights(buffer_device=None)
    tables = [block.attention.rope.cache for block in model.layers.values()]
    assert len({table.data_ptr() for table in tables if table.numel()}) == 1
    assert [table.shape for table in tables] == [(64, 32), (0,), (64, 32), (64, 32)]
    assert torch.equal(tables[0], spec.model.build().layers["0"].attention.rope.cache)
