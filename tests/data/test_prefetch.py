"""Batches on the devices: placement, reading ahead, errors and closing."""

import threading
import time

import jax
import numpy as np
import pytest
from data_folders import data_options, make_folder
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bignas_jax.data import DataError, Loader, open_dataset, prefetch


@pytest.fixture
def mesh():
    return Mesh(np.array(jax.devices()), ("data",))


def batches(count: int, read: list, images: int = 0):
    images = images or jax.device_count()
    for step in range(count):
        read.append(step)
        yield {
            "image": np.full((images, 2, 2, 3), step, np.uint8),
            "label": np.arange(images, dtype=np.int32),
            "weight": np.ones(images, np.float32),
            "skipped": step,
        }


def prefetchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_batches_arrive_in_order_with_the_sharding(mesh):
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    for given in (mesh, sharding):
        placed = list(prefetch(batches(5, []), given))
        assert [batch["skipped"] for batch in placed] == [0, 1, 2, 3, 4]
        assert [int(batch["image"].max()) for batch in placed] == [0, 1, 2, 3, 4]
        for name, dtype in (("image", np.uint8), ("label", np.int32), ("weight", np.float32)):
            assert placed[0][name].dtype == dtype and placed[0][name].sharding == sharding
        assert placed[3]["label"].tolist() == list(range(jax.device_count()))
    assert not prefetchers()


def test_it_reads_ahead_by_its_depth_and_no_further(mesh):
    read = []
    stream = prefetch(batches(100, read), mesh, depth=3)
    next(stream)
    deadline = time.monotonic() + 5
    while len(read) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(read) == 5  # one taken, three wait, one is held for a free place
    stream.close()
    assert not prefetchers() and next(stream, "over") == "over"


def test_errors_of_the_reader_come_out_after_the_batches_before_them(mesh):
    def failing():
        yield from batches(2, [])
        raise DataError("corrupt image x.jpg")

    stream = prefetch(failing(), mesh)
    assert [next(stream)["skipped"] for _ in range(2)] == [0, 1]
    with pytest.raises(DataError, match=r"x\.jpg"):
        next(stream)
    assert not prefetchers()


def test_dropping_it_ends_the_thread_and_closes_the_batches(mesh):
    ended = []

    def endless():
        try:
            yield from batches(10**9, [])
        finally:
            ended.append(True)

    stream = prefetch(endless(), mesh)
    next(stream)
    del stream
    assert ended and not prefetchers()


def test_a_batch_that_does_not_divide_among_the_devices():
    fake = type("Devices", (), {"addressable_devices": [0, 1]})()
    with pytest.raises(DataError, match="3 images a process and step do not divide among its 2 devices"):
        next(prefetch(batches(1, [], images=3), fake))


@pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")
def test_closing_ends_the_workers_of_a_loader_at_once(tmp_path, mesh):
    import multiprocessing

    devices = jax.device_count()
    dataset = open_dataset(data_options(make_folder(tmp_path / "set", train=2 * devices, val=1)))
    here, loader = (Loader(dataset, "train", batch_size=devices, train=True, num_workers=n) for n in (0, 1))
    expected = list(here.epochs(5, 7))
    with prefetch(loader.epochs(5), mesh) as stream:
        for host in expected:
            batch = next(stream)
            assert np.array_equal(batch["image"], host["image"]) and np.array_equal(
                batch["label"], host["label"]
            )
        assert multiprocessing.active_children()
        start = time.monotonic()
    assert time.monotonic() - start < 20
    assert not multiprocessing.active_children() and not prefetchers()
