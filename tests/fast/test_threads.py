"""The threads that the kernels share."""

import multiprocessing
import os
import threading

import pytest
import torch
from support import labels, logits, value_and_gradient

import twinloss.fast as fast
from twinloss.fast.kernels.cpu import voxel_call
from twinloss.fast.runtime import threads

LOSS = fast.DiceLoss(softmax=True, to_onehot_y=True)
MANY = 2**30


@pytest.fixture(params=["torch's threads", "own pool"])
def two_threads(request, monkeypatch):
    """Two threads, of either kind."""
    if request.param == "own pool":
        monkeypatch.setattr(threads, "_parallel_region", lambda: None)
    elif threads._parallel_region() is None:
        pytest.skip("this torch has no OpenMP runtime that can be reached")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_torch_built_with_openmp_lends_its_threads():
    if "OpenMP" not in torch.__config__.parallel_info() or not os.path.exists("/proc/self/maps"):
        pytest.skip("this torch has no OpenMP, or the system is not Linux")
    assert threads._parallel_region() is not None


def test_every_chunk_is_done_once(two_threads):
    done = []
    threads.for_each_chunk(done.append, 1000, MANY)
    assert sorted(done) == list(range(1000))


@pytest.mark.parametrize("chunks", [1, 2, 3, 7, 28, 1000])
@pytest.mark.parametrize("numbers", [1000, MANY])
def test_ranges_make_up_all_chunks_and_grow_no_longer(two_threads, chunks, numbers):
    done = []
    threads.for_each_range(lambda first, end: done.append((first, end)), chunks, numbers)
    ranges = sorted(done)
    assert [first for first, _ in ranges] == [0, *(end for _, end in ranges[:-1])]
    assert ranges[-1][1] == chunks
    lengths = [end - first for first, end in ranges]
    assert lengths == sorted(lengths, reverse=True)
    assert len(ranges) == 1 if numbers < MANY else max(lengths) <= max(chunks // 4, 1)


# In float64 the sums are rounded; those of float32 numbers hang on no order, as float64 holds them.
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 2, 4, 7])
def test_sums_and_gradient_hang_on_no_range(monkeypatch, classes, kind):
    def one_by_one(work, chunks, numbers):
        for chunk in reversed(range(chunks)):
            work(chunk, chunk + 1)

    loss = fast.DiceCELoss(**{"softmax": True, "to_onehot_y": True} if classes > 1 else {"sigmoid": True})
    x, y = logits(2, classes, 200_001).to(kind), labels(2, 1, 200_001, classes=max(classes, 2))
    found = value_and_gradient(loss, x, y)
    monkeypatch.setattr(voxel_call, "for_each_range", one_by_one)
    for each, alone in zip(found, value_and_gradient(loss, x, y), strict=True):
        assert torch.equal(each, alone)


def test_two_threads_take_part(two_threads):
    both = threading.Barrier(2)
    threads.for_each_chunk(lambda _: both.wait(timeout=30), 2, MANY)  # one thread alone would wait for ever


def test_few_numbers_stay_on_the_calling_thread(two_threads):
    callers = set()
    threads.for_each_chunk(lambda _: callers.add(threading.get_ident()), 1000, 1000)
    assert callers == {threading.get_ident()}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("chunk", [0, 7, 99])
def test_an_error_in_any_thread_reaches_the_caller(two_threads, error, chunk):
    def work(index):
        if index == chunk:
            raise error(f"chunk {index}")

    with pytest.raises(error, match=f"chunk {chunk}"):
        threads.for_each_chunk(work, 100, MANY)


def test_many_callers_at_once_get_their_own_result(two_threads):
    batches = [(logits(1, 3, 64, 2048, seed=seed), labels(1, 1, 64, 2048, seed=seed)) for seed in range(8)]
    expected = [value_and_gradient(LOSS, *batch) for batch in batches]
    found = [None] * 8

    def call(index):
        found[index] = value_and_gradient(LOSS, *batches[index])

    callers = [threading.Thread(target=call, args=(index,)) for index in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for (value, slope), (value_alone, slope_alone) in zip(found, expected, strict=True):
        assert torch.equal(value, value_alone)
        assert torch.equal(slope, slope_alone)


def _value_in_child(pipe, x, y):
    pipe.send(LOSS(torch.from_numpy(x), torch.from_numpy(y)).item())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_computes_on_threads_of_its_own(two_threads):
    x, y = logits(1, 3, 64, 2048), labels(1, 1, 64, 2048)
    expected = LOSS(x, y).item()  # the parent's threads have run
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_value_in_child, args=(theirs, x.numpy(), y.numpy()))
    child.start()
    answered = ours.poll(60)
    if not answered:
        child.kill()
    child.join()
    assert answered, "the child hangs"
    assert ours.recv() == expected
