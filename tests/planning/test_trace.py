import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from exact_titan.planning.trace import AllocationTrace


def new_trace(block: int = 1, workspace=lambda func, args: 0) -> AllocationTrace:
    return AllocationTrace(block=block, label=lambda func, tensor, phase: "working", workspace=workspace)


def test_memory_freed_before_the_next_allocation_is_not_added_to_the_peak():
    trace = new_trace()
    with FakeTensorMode(), trace:
        trace.start("forward")
        first = torch.empty(100, dtype=torch.uint8)
        del first
        second = torch.empty(60, dtype=torch.uint8)
        third = torch.empty(70, dtype=torch.uint8)
        del second
        trace.start("backward")
        del third
    forward, backward = trace.peaks()
    assert (forward.phase, forward.bytes) == ("forward", 130)
    assert (backward.phase, backward.bytes) == ("backward", 70)


def test_views_share_their_storage():
    trace = new_trace()
    with FakeTensorMode(), trace:
        trace.start("forward")
        whole = torch.empty(64, dtype=torch.uint8)
        part = whole.view(8, 8)[2:4].t()
        del whole
    assert part.shape == (8, 2)
    assert trace.peaks()[0].bytes == 64


def test_a_tensor_can_get_its_kind_later():
    trace = new_trace()
    with FakeTensorMode():
        parameter = torch.empty(10, dtype=torch.uint8)
        trace.hold(parameter, "parameters")
        with trace:
            trace.start("forward")
            saved = torch.empty(20, dtype=torch.uint8)
            trace.start("loss")
            gradient = torch.empty(5, dtype=torch.uint8)
            trace.hold(gradient, "gradients")
    assert saved.shape == (20,)
    assert trace.before("loss") == {"parameters": 10, "activations": 20}
    assert trace.peaks()[1].by_kind == {"parameters": 10, "activations": 20, "gradients": 5}
    assert trace.most() == {"parameters": 10, "activations": 20, "gradients": 5}
    assert trace.held("gradients") == 5


def test_resized_storages_are_gathered_parameters_of_fsdp():
    trace = new_trace()
    with FakeTensorMode(), trace:
        trace.start("forward")
        whole = torch.empty(40, dtype=torch.uint8)
        whole.untyped_storage().resize_(0)
        assert trace.held("gathered parameters") == 0
        whole.untyped_storage().resize_(40)
        assert trace.held("gathered parameters") == 40
    assert trace.peaks()[0].bytes == 40


@pytest.mark.parametrize(("size", "allocated"), [(1, 512), (512, 512), (513, 1024)])
def test_allocations_are_rounded_up_to_blocks(size, allocated):
    trace = new_trace(block=512)
    with FakeTensorMode(), trace:
        trace.start("forward")
        tensor = torch.empty(size, dtype=torch.uint8)
    assert tensor.shape == (size,)
    assert trace.peaks()[0].bytes == allocated


def test_the_workspace_exists_during_one_operator():
    trace = new_trace(workspace=lambda func, args: 1000 if func is torch.ops.aten.neg.default else 0)
    with FakeTensorMode(), trace:
        trace.start("forward")
        tensor = -torch.empty(10, dtype=torch.int8)
        trace.start("loss")
    assert tensor.shape == (10,)
    assert [peak.bytes for peak in trace.peaks()] == [1020, 10]


def test_matrix_products_are_counted():
    trace = new_trace()
    with FakeTensorMode(), trace:
        trace.start("forward")
        torch.empty(3, 5) @ torch.empty(5, 7)
    assert trace.matmul_flops == 2 * 3 * 5 * 7


def test_resize_is_restored():
    before = torch.UntypedStorage.resize_
    with FakeTensorMode(), new_trace():
        assert torch.UntypedStorage.resize_ is not before
    assert torch.UntypedStorage.resize_ is before
