"""What several processes of a run must find alike before they go on, and how they tell each other what they met."""

import contextlib
import hashlib
import json
import os
import pathlib
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bignas_jax.config.files import differences, from_json, to_json
from bignas_jax.config.options import Options
from bignas_jax.errors import ConfigError, DataError
from bignas_jax.files import write_text
from bignas_jax.programs.processes import gather, line_of, name_of, own_index, several

# What may differ between hosts: who a process is, and where and how it reads its images.
_OF_A_HOST = ("config.distributed.", "config.data.root:", "config.data.num_workers:")
_FOLDER_SECONDS = 15.0  # that a network file system may take to show a new file


def agreed(batches: Iterable[dict]) -> Iterator[dict]:
    """The batches, each once all processes have theirs. What one of them cannot read is an error of all, at one step.

    Raises:
      DataError: with the image, and the process that met it.
    """
    if not several():
        yield from batches
        return
    batches = iter(batches)
    while True:
        batch, failure = None, None
        try:
            batch = next(batches, None)
        except DataError as error:
            failure = error
        met = gather(None if failure is None else line_of(failure)[0])
        if failure is not None:
            raise failure
        for index, line in enumerate(met):
            if line is not None:
                raise DataError(f"{name_of(index)}: {line}")
        if batch is None:
            return
        yield batch


def check_options(options: Options) -> None:
    """Refuses processes that were started with other options than process 0.

    Raises:
      ConfigError: with the differences, and the process that has them.
    """
    if not several():
        return
    first, *others = (from_json(text) for text in gather(to_json(options)))
    for index, found in enumerate(others, 1):
        lines = [line for line in differences(first, found) if not line.startswith(_OF_A_HOST)]
        if lines:
            raise ConfigError(
                f"{name_of(index)} was started with another config than process 0 ({'; '.join(lines)}): expected the "
                "same command everywhere, but for config.distributed, data.root and data.num_workers"
            )


def check_same(what: str, found: Any) -> None:
    """Refuses processes that found something else than process 0.

    Args:
      what: was found, for the message, such as the flag that says it.
      found: what JSON can hold.
    Raises:
      ConfigError: with what both found.
    """
    first, *others = gather(found)
    for index, other in enumerate(others, 1):
        if other != first:
            raise ConfigError(
                f"{what}: found {other} in {name_of(index)} and {first} in process 0, expected the same command, the "
                "same checkpoint and the same images everywhere"
            )


def check_images(found: Mapping[str, Any]) -> None:
    """Refuses processes whose data are not those of process 0.

    Args:
      found: as `data.fingerprint` gives it.
    Raises:
      ConfigError: with what differs, and in which process.
    """
    if not several():
        return
    classes = hashlib.sha256(json.dumps(found["classes"]).encode()).hexdigest()
    first, *others = gather({**found, "classes": classes})
    for index, other in enumerate(others, 1):
        if other == first:
            continue
        what = "other classes"
        if other["classes"] == first["classes"]:
            split = "train" if other["train"] != first["train"] else "val"
            what = f"{other[split]['images']:,} images of '{split}', process 0 {first[split]['images']:,}"
            if other[split]["images"] == first[split]["images"]:
                what = f"{first[split]['images']:,} images of '{split}' as process 0, but of other names or classes"
        raise ConfigError(
            f"config.data.root: {name_of(index)} finds {what}; expected the same files on all hosts: copy them "
            "anew, or use a folder that all of them see"
        )


def check_folder(workdir: pathlib.Path) -> None:
    """Refuses a run's folder that is not the same one for all processes. Process 0 must be able to write to it.

    Raises:
      ConfigError: with the process that sees another folder.
    """
    if not several():
        return
    sign = workdir / gather(f".seen-by-all-{secrets.token_hex(8)}")[0]
    if own_index() == 0:
        write_text(sign, "")
    gather(None)  # it is there
    try:
        end = time.monotonic() + _FOLDER_SECONDS
        while not (seen := _lists(sign)) and time.monotonic() < end:
            time.sleep(0.2)
        for index, sees in enumerate(gather(seen)):
            if not sees:
                raise ConfigError(
                    f"--workdir: {name_of(index)} does not see what process 0 writes to {workdir}, expected a folder "
                    "that all hosts share"
                )
    finally:
        if own_index() == 0:
            with contextlib.suppress(OSError):
                sign.unlink()


def _lists(path: pathlib.Path) -> bool:
    """Whether its folder has the file. A network file system may answer a question for the file alone from memory."""
    with contextlib.suppress(OSError):
        return path.name in os.listdir(path.parent)
    return False
