import math

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from exact_titan.models.hf_config import read_architecture
from exact_titan.titan.model.decoder import decoder_spec
from tests.checkpoints import CHECKPOINTS, transformers_model


class CountingReader(HuggingFaceStorageReader):
    """Counts the values that the reader reads."""

    numbers = 0

    def _process_read_request(self, f, req, planner):
        self.numbers += math.prod(req.lengths)
        super()._process_read_request(f, req, planner)


@pytest.fixture
def checkpoint(request, tmp_path):
    """A folder with one of CHECKPOINTS. The save comes before ``mesh``, because transformers saves only on rank 0."""
    transformers_model(request.param).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def mesh(checkpoint):
    """The device mesh of rank 1 of 4. The other ranks do not run."""
    dist.init_process_group("fake", rank=1, world_size=4, store=FakeStore())
    yield init_device_mesh("cpu", (4,))
    dist.destroy_process_group()


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, indirect=True)
def test_a_rank_reads_its_own_rows_and_nothing_else(checkpoint, mesh):
    # 2 key heads of size 16 over 4 ranks give half a head per rank. A permutation of the rows would need whole heads.
    spec = decoder_spec(read_architecture(checkpoint))
    with torch.device("meta"):
        model = spec.model.build()
    for layer in model.layers.values():
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    state = spec.state_dict_adapter(spec.model, None).to_hf(model.state_dict())
    reader = CountingReader(str(checkpoint))
    dcp.load(state, storage_reader=reader, no_dist=True)

    weights = load_file(checkpoint / "model.safetensors")
    assert state.keys() == weights.keys()
    for name, tensor in state.items():
        expected = distribute_tensor(weights[name], mesh, tensor.placements, src_data_rank=None)
        assert torch.equal(tensor.to_local(), expected.to_local())
    own = sum(tensor.to_local().numel() for tensor in state.values())
    assert reader.numbers == own
    assert own == sum(tensor.numel() for tensor in weights.values()) // 4
