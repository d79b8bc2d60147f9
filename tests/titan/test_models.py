import pytest

from exact_titan.errors import InputError
from exact_titan.titan.models import LlamaArchitecture, check_vocabulary, llama_spec


def test_the_vocabulary_is_the_tokenizers_unless_it_is_given():
    shape = {"dim": 32, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64}
    assert llama_spec(LlamaArchitecture(**shape), seq_len=8, tokenizer_vocab=99).model.vocab_size == 99
    larger = LlamaArchitecture(**shape, vocab_size=128)
    assert llama_spec(larger, seq_len=8, tokenizer_vocab=99).model.vocab_size == 128


def test_tied_embeddings_are_one_parameter():
    shape = {"dim": 32, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64}
    sizes = {}
    for tied in (True, False):
        spec = llama_spec(LlamaArchitecture(**shape, tie_embeddings=tied), seq_len=8, tokenizer_vocab=100)
        sizes[tied] = sum(parameter.numel() for parameter in spec.model.build().parameters())
    assert sizes[False] - sizes[True] == 100 * 32


def test_a_vocabulary_that_lacks_some_of_the_datasets_ids_is_refused():
    model = llama_spec(LlamaArchitecture(vocab_size=98), seq_len=8, tokenizer_vocab=98).model
    check_vocabulary(model, tokenizer_vocab=98)
    with pytest.raises(InputError, match=r"^model.vocab_size is 98, but the dataset's tokenizer has 99 ids"):
        check_vocabulary(model, tokenizer_vocab=99)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"n_heads": 7}, "model.n_heads is 7"),
        ({"dim": 24, "n_heads": 8}, "model.n_heads is 8"),
        ({"n_kv_heads": 3}, "model.n_kv_heads is 3"),
        ({"n_layers": 0}, "model.n_layers is 0"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(shape, message):
    with pytest.raises(InputError, match=f"^{message}"):
        llama_spec(LlamaArchitecture(**shape), seq_len=8, tokenizer_vocab=99)
