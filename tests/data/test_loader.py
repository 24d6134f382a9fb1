"""Order, augmentation, workers, hosts, resuming, corrupt images and what happens to workers."""

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from data_folders import data_options, make_folder, picture
from paths import ROOT, TESTS
from PIL import Image

from bignas_jax.data import DataError, Loader, draws, open_dataset
from bignas_jax.data.reader import Reader
from bignas_jax.data.transforms import NUM_DRAWS, resized_crop_box

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")

EVERYTHING = [
    dict(crop="resized", policy="imagenet", color_jitter=(0.4, 0.4, 0.4, 0.1)),
    dict(crop="padded", policy="rand"),
    dict(crop="none", policy="none"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("set"), train=10, val=4)


def trainer(root, batch_size=8, seed=0, augment=EVERYTHING[0], **arguments) -> Loader:
    dataset = open_dataset(data_options(root, holdout=3, augment=augment), seed=seed)
    return Loader(dataset, "train", batch_size=batch_size, train=True, **arguments)


def assert_same(batches, others):
    batches, others = list(batches), list(others)
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        for field in ("image", "label", "weight", "skipped"):
            assert np.array_equal(batch[field], other[field]), field


def test_batches_have_the_promised_shapes(root):
    loader = trainer(root)
    assert (loader.num_images, loader.steps_per_epoch) == (24, 3)
    (batch,) = loader.epochs(0, 1)
    assert batch["image"].shape == (8, 16, 16, 3) and batch["image"].dtype == np.uint8
    assert batch["image"].flags.c_contiguous
    assert batch["label"].dtype == np.int32 and batch["weight"].dtype == np.float32
    assert batch["weight"].tolist() == [1] * 8 and batch["skipped"] == 0


def test_epochs_are_different_permutations_of_the_training_images(root):
    loader = trainer(root)
    _, indices = loader._dataset.select("train")
    orders = [loader.order(epoch) for epoch in range(30)]
    assert all(len(set(order)) == 24 and set(order) <= set(indices) for order in orders)
    assert len({order.tobytes() for order in orders}) == 30
    assert set(np.concatenate(orders)) == set(indices)  # what an epoch drops differs
    assert not np.array_equal(orders[0], trainer(root, seed=1).order(0))


@pytest.mark.parametrize("augment", EVERYTHING)
def test_labels_belong_to_images_and_augmentation_changes_by_epoch_and_seed(root, augment):
    loader = trainer(root, augment=augment, batch_size=27)
    first, second = loader.epochs(0, 2)
    labels = loader._source.labels
    for epoch, batch in enumerate((first, second)):
        assert np.array_equal(batch["label"], labels[loader.order(epoch)])
    reseeded = trainer(root, augment=augment, batch_size=27, seed=1)
    (other,) = reseeded.epochs(0, 1)
    read = [(loader.order(0), first), (loader.order(1), second), (reseeded.order(0), other)]
    by_index = [dict(zip(order, batch["image"], strict=True)) for order, batch in read]
    same = sum(np.array_equal(by_index[0][i], by_index[k][i]) for k in (1, 2) for i in by_index[0])
    assert same < (
        40 if augment["crop"] == "none" else 3
    )  # of 54; without a crop, flips alone make the difference


@pytest.mark.parametrize("augment", EVERYTHING)
def test_starting_at_any_step_gives_the_same_batches(root, augment):
    whole = list(trainer(root, augment=augment).epochs(0, 8))
    for start in (1, 3, 5):
        assert_same(trainer(root, augment=augment).epochs(start, 8), whole[start:])


def test_starting_late_decodes_nothing_that_it_skips(root, monkeypatch):
    loaded = []
    loader = trainer(root)
    blank = np.zeros((20, 20, 3), np.uint8), (20, 20)
    monkeypatch.setattr(loader._source, "load_reduced", lambda i, _reduction: loaded.append(i) or blank)
    batches = loader.epochs(3 * 10**6 + 1)
    assert next(batches)["label"].shape == (8,)
    assert loaded == loader.order(10**6)[8:16].tolist()


def test_large_photographs_are_cropped_as_pil_crops_them(tmp_path):
    """Decoded at a reduced size, all of them: 4 of 255 levels of mean difference at most, and still resumable."""
    root = make_folder(tmp_path, train=4, val=1, size=(520, 400))
    loader = trainer(root, batch_size=4, augment=dict(policy="none", flip=0.0))
    batches = list(loader.epochs(0, 4))
    assert_same(trainer(root, batch_size=4, augment=dict(policy="none", flip=0.0)).epochs(1, 4), batches[1:])
    augmentation, reduced = loader._dataset.augmentation, 0
    for step, batch in enumerate(batches):
        epoch, first = divmod(step, loader.steps_per_epoch)
        order = loader.order(epoch)[4 * first : 4 * first + 4]
        table = draws.uniforms(draws.key(0, epoch, draws.AUGMENT), order, NUM_DRAWS).tolist()
        for i, drawn, ours in zip(order, table, batch["image"], strict=True):
            name = loader._source.name(i)
            reduced += name.endswith("jpg") and augmentation.reduction(drawn)(400, 520) > 1
            top, left, height, width = resized_crop_box(400, 520, (0.08, 1.0), (0.75, 1.3333), drawn[9:])
            whole = Image.open(name).convert("RGB").crop((left, top, left + width, top + height))
            by_pil = np.asarray(whole.resize((16, 16), Image.Resampling.BICUBIC)).astype(int)
            assert np.abs(ours - by_pil).mean() < 4, name
    assert reduced > 3


@pytest.mark.parametrize("augment", EVERYTHING)
def test_hosts_read_the_parts_of_the_global_batch(root, augment):
    whole = list(trainer(root, augment=augment).epochs(2, 5))
    hosts = [trainer(root, augment=augment, process_index=p, process_count=4) for p in range(4)]
    parts = [list(host.epochs(2, 5)) for host in hosts]
    joined = [
        {field: np.concatenate([batch[field] for batch in batches]) for field in ("image", "label", "weight")}
        | {"skipped": sum(batch["skipped"] for batch in batches)}
        for batches in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


def test_workers_read_what_the_process_itself_reads(root):
    here = list(trainer(root).epochs(1, 8))
    torch.manual_seed(0)
    expected_draw = torch.rand(1)
    torch.manual_seed(0)
    assert_same(trainer(root, num_workers=2).epochs(1, 8), here)
    assert torch.rand(1) == expected_draw  # the caller's generator is where it was
    torch.manual_seed(0)
    list(trainer(root).epochs(0, 1))
    assert torch.rand(1) == expected_draw


def test_once_reads_every_image_in_order_and_pads(root):
    dataset = open_dataset(data_options(root))
    loader = Loader(dataset, "val", batch_size=8)
    assert (loader.num_images, loader.steps_per_epoch) == (12, 2)
    batches = list(loader.once())
    assert [batch["weight"].tolist() for batch in batches] == [[1] * 8, [1] * 4 + [0] * 4]
    labels = np.concatenate([batch["label"] for batch in batches])
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [0] * 4
    images = np.concatenate([batch["image"] for batch in batches])
    assert all(np.array_equal(images[i], dataset.evaluation(dataset.val.load(i))) for i in range(12))
    assert not images[12:].any()
    assert_same(loader.once(), batches)


@pytest.mark.parametrize("batch_size, count", [(8, 4), (20, 2), (6, 3)])
def test_hosts_evaluate_every_image_once(root, batch_size, count):
    dataset = open_dataset(data_options(root))
    whole = list(Loader(dataset, "val", batch_size=batch_size).once())
    hosts = [dict(process_index=p, process_count=count) for p in range(count)]
    parts = [Loader(dataset, "val", batch_size=batch_size, **host) for host in hosts]
    for batch, *others in zip(whole, *(part.once() for part in parts), strict=True):
        for field in ("image", "label", "weight"):
            assert np.array_equal(np.concatenate([other[field] for other in others]), batch[field])


def test_evaluation_workers_read_the_same_and_end(root):
    dataset = open_dataset(data_options(root, num_workers=1))
    loader = Loader(dataset, "val", batch_size=4)
    expected = list(Loader(dataset, "val", batch_size=4, num_workers=0).once())
    assert_same(loader.once(), expected)
    assert not _children()
    begun = loader.once()
    assert np.array_equal(next(begun)["image"], expected[0]["image"])
    start = time.monotonic()
    begun.close()
    assert not _children() and time.monotonic() - start < 20


def test_calibration_draws_full_batches_of_training_images(root):
    dataset = open_dataset(data_options(root, holdout=3))
    loader = Loader(dataset, "calibration", batch_size=8, limit=20, seed=4)
    batches = list(loader.once())
    assert (loader.num_images, loader.steps_per_epoch, len(batches)) == (16, 2, 2)
    assert all(batch["weight"].all() for batch in batches)
    order = loader.order(0)
    assert len(set(order)) == 16 and not set(order) & set(dataset.holdout_indices)
    expected = [dataset.evaluation(dataset.train.load(i)) for i in order]
    assert np.array_equal(np.concatenate([batch["image"] for batch in batches]), expected)
    assert_same(Loader(dataset, "calibration", batch_size=8, limit=20, seed=4).once(), batches)
    assert not np.array_equal(Loader(dataset, "calibration", batch_size=8, limit=20, seed=5).order(0), order)


def test_limit_of_evaluation_draws_from_all_classes(root):
    loader = Loader(open_dataset(data_options(root)), "val", batch_size=4, limit=6)
    labels = np.concatenate([batch["label"] for batch in loader.once()])
    assert loader.num_images == 6 and len(set(loader.order(0))) == 6 and len(set(labels[:6])) > 1


@pytest.mark.parametrize(
    "split, arguments, words",
    [
        ("train", dict(batch_size=32, train=True), ["27", "32", "config.batch_size"]),
        ("calibration", dict(batch_size=64), ["27", "64", "config.calibration.batch_size"]),
        ("calibration", dict(batch_size=8, limit=100), ["27", "100", "config.calibration.num_images"]),
        ("train", dict(batch_size=9, process_count=2), ["config.batch_size", "9", "2"]),
        ("val", dict(batch_size=0), ["config.evaluation.batch_size", "0"]),
        ("test", dict(batch_size=8), ["'test'", "holdout"]),
    ],
)
def test_loaders_that_cannot_work_say_why(root, split, arguments, words):
    with pytest.raises(DataError) as error:
        Loader(open_dataset(data_options(root, holdout=3)), split, **arguments)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_no_held_out_images(root):
    with pytest.raises(DataError, match="config.data.holdout"):
        Loader(open_dataset(data_options(root)), "holdout", batch_size=8)


@pytest.fixture
def damaged(tmp_path):
    root = make_folder(tmp_path / "set", train=4, val=4)
    for split in ("train", "val"):
        path = root / split / "bee" / "002.jpg"
        picture(0, noise=True).save(path)
        path.write_bytes(path.read_bytes()[:600])
    return root


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_ends_the_batches_with_its_name(damaged, workers):
    dataset = open_dataset(data_options(damaged, num_workers=workers))
    batches = Loader(dataset, "train", batch_size=4, train=True).epochs()
    with pytest.raises(DataError) as error:
        for _ in range(4):
            next(batches)
    message = str(error.value)
    assert str(damaged / "train" / "bee" / "002.jpg") in message and "on_corrupt='skip'" in message
    assert "\n" not in message and "truncated" in message.lower()
    assert not _children()


def test_skipped_training_images_are_replaced_and_counted(damaged):
    dataset = open_dataset(data_options(damaged, on_corrupt="skip"))
    loader = Loader(dataset, "train", batch_size=4, train=True)
    batches = list(loader.epochs(0, 30))
    assert [sum(batch["skipped"] for batch in batches[i : i + 3]) for i in range(0, 30, 3)] == [1] * 10
    assert all(batch["weight"].all() for batch in batches)
    assert_same(loader.epochs(4, 30), batches[4:])
    corrupt = next(i for i in range(12) if dataset.train.name(i).endswith("bee/002.jpg"))
    orders = np.concatenate([loader.order(epoch) for epoch in range(10)])
    labels = np.concatenate([batch["label"] for batch in batches])
    stand_ins = labels[orders == corrupt]
    assert len(stand_ins) == 10 and len(set(stand_ins)) > 1  # drawn anew each epoch, with their own labels
    assert np.array_equal(labels[orders != corrupt], dataset.train.labels[orders[orders != corrupt]])


def test_skipped_calibration_images_are_replaced(damaged):
    loader = Loader(open_dataset(data_options(damaged, on_corrupt="skip")), "calibration", batch_size=12)
    (batch,) = loader.once()
    assert batch["skipped"] == 1 and batch["weight"].all() and batch["image"].any(axis=(1, 2, 3)).all()


def test_skipped_evaluation_images_weigh_nothing(damaged):
    loader = Loader(open_dataset(data_options(damaged, on_corrupt="skip")), "val", batch_size=16)
    (batch,) = loader.once()
    assert batch["skipped"] == 1 and batch["weight"].tolist() == [1] * 6 + [0] + [1] * 5 + [0] * 4
    assert not batch["image"][6].any()


def test_a_set_of_corrupt_images_does_not_read_for_ever(damaged):
    for path in (damaged / "train").glob("*/*"):
        path.write_bytes(b"")
    loader = Loader(open_dataset(data_options(damaged, on_corrupt="skip")), "train", batch_size=4, train=True)
    with pytest.raises(DataError, match="in a row are corrupt"):
        next(loader.epochs())


@pytest.fixture
def waited(monkeypatch) -> list[float]:
    """The pauses before a file is tried again, which tests do not wait for."""
    found = []
    monkeypatch.setattr(Reader, "_wait", lambda _, seconds: found.append(seconds))
    return found


@pytest.mark.parametrize("split", ["train", "calibration", "val"])
def test_a_file_that_cannot_be_read_is_tried_again_and_ends_the_batches(root, tmp_path, waited, split):
    """With on_corrupt='skip', too: what it holds may be good, so it is neither replaced nor left out."""
    own = shutil.copytree(root, tmp_path / "own")
    dataset = open_dataset(data_options(own, on_corrupt="skip"))
    gone = own / ("val" if split == "val" else "train") / "bee" / "002.jpg"
    gone.unlink()
    loader = Loader(dataset, split, batch_size=10, train=split == "train")
    with pytest.raises(DataError) as error:
        list(loader.epochs(0, 3) if split == "train" else loader.once())
    message = str(error.value)
    assert str(gone) in message and "No such file" in message and "6 attempts" in message and "\n" not in message
    assert waited == sorted(waited) and len(waited) == 5 and 10 < sum(waited) < 30


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("on_corrupt", ["skip", "error"])
def test_a_file_system_that_is_away_for_a_moment_changes_nothing(root, monkeypatch, waited, code, on_corrupt):
    dataset = open_dataset(data_options(root, on_corrupt=on_corrupt))
    expected = list(Loader(dataset, "val", batch_size=8).once())
    read, failures = io.open, []

    def fail(path, *arguments, **named):
        if str(path).endswith("bee/002.jpg") and len(failures) < 3:
            failures.append(path)
            raise OSError(code, os.strerror(code), path)
        return read(path, *arguments, **named)

    monkeypatch.setattr("builtins.open", fail)
    found = list(Loader(dataset, "val", batch_size=8).once())
    assert len(failures) == 3 and len(waited) == 3
    assert_same(found, expected)


def test_waiting_for_a_file_ends_with_the_batches(root, tmp_path):
    own = shutil.copytree(root, tmp_path / "own")
    dataset = open_dataset(data_options(own))
    (own / "val" / "ant" / "000.jpg").unlink()
    batches = Loader(dataset, "val", batch_size=8).once()
    thread = threading.Thread(target=lambda: pytest.raises(DataError, next, batches))
    thread.start()
    time.sleep(0.5)
    assert thread.is_alive()
    batches.cancel()
    thread.join(5)
    assert not thread.is_alive()


SCRIPT = """
import multiprocessing, os, signal, sys
import jax  # and no guard: workers neither import JAX nor run this script
from data_folders import data_options
from bignas_jax.data import Loader, open_dataset
signal.signal(signal.SIGTERM, lambda *_: print("asked to end", flush=True))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
loader = Loader(open_dataset(data_options(sys.argv[1], num_workers=1)), "train", batch_size=8, train=True)
batches = loader.epochs()
if sys.argv[2] == "reading":
    next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
while True:
    next(batches)
"""


@pytest.fixture(params=["reading"])
def running(root, tmp_path, request):
    """A process in its own group that reads without end, and its worker's id: of one that reads, or just starts."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(ROOT)])}
    process = subprocess.Popen(
        [sys.executable, str(script), str(root), request.param],
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process, int(process.stdout.readline())
    process.kill()
    process.communicate()


def test_workers_leave_signals_to_the_main_process(running):
    process, worker = running
    assert "jaxlib" not in Path(f"/proc/{worker}/maps").read_text()
    os.killpg(process.pid, signal.SIGTERM)
    assert process.stdout.readline() == "asked to end\n"
    time.sleep(0.3)
    assert process.poll() is None and _alive(worker)  # reading goes on while the main process saves
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0 and not _alive(worker)
    assert errors.count("Traceback") == 1 and errors.rstrip().endswith("KeyboardInterrupt"), errors


@pytest.mark.parametrize("running", ["reading", "starting"], indirect=True)
def test_workers_end_when_the_main_process_is_killed(running):
    process, worker = running
    process.kill()
    deadline = time.monotonic() + 30
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(worker)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _children() -> set[int]:
    """Processes that run a worker for this one."""
    import multiprocessing

    return {child.pid for child in multiprocessing.active_children()}
