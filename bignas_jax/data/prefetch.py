"""Batches placed on the devices before the step that uses them."""

import atexit
import functools
import queue
import threading
from collections.abc import Iterable

from bignas_jax.errors import DataError

_END = object()


class Prefetch:
    """Iterates device batches; made by `prefetch`. Closing or dropping it ends the thread and the workers."""

    def __init__(self, batches: Iterable[dict], place, depth: int):
        self._queue: queue.Queue = queue.Queue(depth)
        self._stop = threading.Event()
        # The thread holds no reference to this object, so that dropping the last reference closes it.
        self._thread = threading.Thread(
            target=_fill, args=(batches, place, self._queue, self._stop), daemon=True, name="prefetch"
        )
        self._thread.start()
        self._end = functools.partial(_end, batches, self._thread, self._stop)
        atexit.register(self._end)  # a thread that outlives the interpreter's devices may crash it

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> dict:
        if self._stop.is_set():
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, dict):
            return item
        self.close()
        if item is _END:
            raise StopIteration
        raise item

    def close(self) -> None:
        """Ends the thread and the workers. Batches that were read ahead are dropped."""
        self._end()
        atexit.unregister(self._end)

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self):
        if hasattr(self, "_end"):
            self.close()


def prefetch(batches: Iterable[dict], sharding, depth: int = 2) -> Prefetch:
    """Reads `depth` batches ahead in a thread and places them on the devices.

    Args:
        batches: this process's part of each batch, from `Loader.epochs` or `Loader.once`.
        sharding: a `jax.sharding.NamedSharding` over the batch axis, or a mesh whose first axis is the batch axis.
        depth: the greatest number of device batches that wait.

    Returns:
        An iterator of dicts. image, label and weight are global jax.Arrays with that sharding; skipped is unchanged.
        The iterator raises the exceptions of the reader.
    """
    import jax  # here, because the workers of a loader import this package and do not need JAX

    if isinstance(sharding, jax.sharding.Mesh):
        sharding = jax.sharding.NamedSharding(sharding, jax.sharding.PartitionSpec(sharding.axis_names[0]))

    def place(batch: dict) -> dict:
        arrays = {name: batch[name] for name in ("image", "label", "weight")}
        devices, images = len(sharding.addressable_devices), len(arrays["label"])
        if images % devices:
            raise DataError(
                f"{images} images a process and step do not divide among its {devices} devices: "
                "change the batch size or config.num_devices"
            )
        placed = {
            name: jax.make_array_from_process_local_data(sharding, array) for name, array in arrays.items()
        }
        return placed | {"skipped": batch["skipped"]}

    return Prefetch(batches, place, depth)


def _fill(batches: Iterable[dict], place, into: queue.Queue, stop: threading.Event) -> None:
    try:
        for batch in batches:
            if stop.is_set() or not _put(into, place(batch), stop):
                return
        _put(into, _END, stop)
    except BaseException as error:
        _put(into, error, stop)
    finally:
        getattr(batches, "close", lambda: None)()


def _put(into: queue.Queue, item, stop: threading.Event) -> bool:
    """Waits for a free place and puts the item there. False if told to stop first."""
    while not stop.is_set():
        try:
            into.put(item, timeout=0.05)
            return True
        except queue.Full:
            pass
    return False


def _end(batches: Iterable[dict], thread: threading.Thread, stop: threading.Event) -> None:
    stop.set()
    getattr(batches, "cancel", lambda: None)()  # a generator cannot be closed while the thread waits in it
    thread.join()
