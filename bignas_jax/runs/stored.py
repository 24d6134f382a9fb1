"""One checkpoint on disk: which items it holds, and its arrays, held against its manifest."""

import pathlib
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from bignas_jax.errors import CheckpointError, DamagedCheckpoint, FileError
from bignas_jax.files import read_json
from bignas_jax.forms import check_form
from bignas_jax.runs.manifest import check_arrays, manifest_of

LIST = "_CHECKPOINT_METADATA"  # orbax's list of a checkpoint's items
MANIFEST = "manifest"
_ARRAY = {"shape": [int], "dtype": str, "crc32": int}  # what a manifest says of an array


def score_of(folder: pathlib.Path) -> float | None:
    """The accuracy that the checkpoint in a folder was saved with; None if there is none that can be read."""
    try:
        return float(read_json(folder / "metrics" / "metrics")["top1"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Stored:
    """A checkpoint of a run.

    Args:
      manager: of the folder that it lies in.
      folder: of all checkpoints of the run.
      step: its number.
    """

    def __init__(self, manager: ocp.CheckpointManager, folder: pathlib.Path, step: int):
        self._manager, self._step, self.folder = manager, step, folder / str(step)

    def is_old(self) -> bool:
        """Whether it comes from a version that wrote no manifest."""
        return MANIFEST not in self.items()

    def items(self) -> tuple[str, ...]:
        """The items that a checkpoint must hold.

        Raises:
          DamagedCheckpoint: it lacks one, or its manifest cannot be read.
        """
        folder = self.folder
        try:
            written = read_json(folder / LIST)["item_handlers"]
            items = tuple(item for item in written if item != "metrics")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {LIST}: {reason(error)}") from error
        missing = [item for item in dict.fromkeys(["params", *items]) if not (folder / item).is_dir()]
        if missing:
            raise DamagedCheckpoint(f"checkpoint {folder} is incomplete: found no {', '.join(missing)} in it")
        if odd := [path for path in folder.rglob("*") if not path.is_file() and not path.is_dir()]:
            where = odd[0].relative_to(folder)
            raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {where} is neither a file nor a folder")
        return items

    def _manifest(self) -> dict[str, dict[str, Any]]:
        folder = self.folder
        try:
            found = read_json(folder / MANIFEST / "metadata")
            check_form(found, {item: {} for item in self.items() if item != MANIFEST}, "manifest")
            for item, arrays in found.items():
                check_form(arrays, dict.fromkeys(arrays, _ARRAY), f"manifest.{item}")
        except (OSError, FileError) as error:
            raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {reason(error)}") from error
        counter = found.get("training", {}).get("step")
        if counter and counter["crc32"] != manifest_of({"step": np.int32(self._step)})["step"]["crc32"]:
            raise DamagedCheckpoint(
                f"checkpoint {folder} holds another step than its name says, as a copy or a renamed folder does"
            )
        return found

    def read(self, items: dict[str, Any]) -> Any:
        """Items of a checkpoint in the form given, held against its manifest.

        Raises:
          CheckpointError: its arrays have other names or shapes.
          DamagedCheckpoint: it lacks an item, or cannot be read, or its bytes are not the ones that were written.
        """
        folder, old = self.folder, self.is_old()
        manifest = {} if old else self._manifest()
        misfit = f"checkpoint {folder} does not fit this config's space and model"
        for item, form in items.items():
            if manifest:
                check_arrays(f"{misfit}: {item}", manifest_of(form, checksum=False), manifest.get(item, {}))
        args = {name: ocp.args.StandardRestore(item) for name, item in items.items()}
        for item in items:  # orbax can do without, but where one file is damaged others may be
            try:
                read_json(folder / item / "_METADATA")
            except (OSError, ValueError) as error:
                where = f"{item}/_METADATA: {reason(error)}"
                raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {where}") from error
        try:
            read = self._manager.restore(self._step, args=ocp.args.Composite(**args))
        except (ValueError, KeyError) as error:
            if old:
                raise CheckpointError(f"{misfit}, or is damaged: {reason(error)}") from error
            raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {reason(error)}") from error
        except Exception as error:  # orbax and what it reads with raise what they like
            raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {reason(error)}") from error
        for item in items if manifest else ():
            for name, now in manifest_of(read[item]).items():
                if now["crc32"] != manifest[item][name]["crc32"]:
                    raise DamagedCheckpoint(
                        f"checkpoint {folder} is damaged: {item} {name} has other bytes than were written"
                    )
        return read


def reason(error: Exception) -> str:
    """The first line of an error, cut where it grows long."""
    text = (str(error).strip() or type(error).__name__).split("\n")[0]
    text = text.partition(" See full TensorStore details")[0]  # pages of its settings
    return text if len(text) <= 200 else f"{text[:200]} ..."
