"""A run in Weights & Biases (wandb.ai), offline or online: <workdir>/wandb, and <workdir>/wandb.json beside it.

Offline runs are uploaded later, by `wandb sync <workdir>/wandb/offline-run-*`. Each start of the run adds such a
folder. All have one id, so that they are one run on the server.

W&B takes the points of a step as one row, and rows in ascending order only. So a row is kept here until a later step
comes. wandb.json says which row was handed over last. It is written before the row is handed over: a kill between the
two loses a row in W&B, but no row is there twice.
"""

import secrets
from collections.abc import Mapping

from bignas_jax.errors import FileError
from bignas_jax.files import read_json, write_json
from bignas_jax.runs.trackers import About


class WandbRun:
    """The run of W&B that belongs to a run's folder: a new one, or the one that its wandb.json names.

    Args:
        about: `target` is offline or online.
    Raises:
        FileError: wandb.json is damaged.
        wandb.errors.Error: W&B cannot be reached or takes no key, or the like.
    """

    def __init__(self, about: About):
        import wandb  # here, because it is no requirement

        self._path = about.workdir / "wandb.json"
        try:
            known = read_json(self._path)
            self._id, self._step, self._curves = str(known["id"]), int(known["step"]), set(known["curves"])
        except FileNotFoundError:
            self._id, self._step, self._curves = secrets.token_hex(8), -1, set()
            self._note()
        except (KeyError, TypeError, ValueError) as error:
            reason = error if isinstance(error, FileError) else "found something else"
            raise FileError(f"{self._path}: {reason}, expected what an earlier start wrote: remove it") from None
        self._row: dict[str, float] = {}
        self._run = wandb.init(
            project=about.project,
            id=self._id,
            name=about.workdir.resolve().name,
            dir=str(about.workdir),
            mode=about.target,
            resume="allow",
            config=about.config,
            allow_val_change=True,
            settings=wandb.Settings(console="off", silent=True, save_code=False, disable_git=True),
        )

    def new(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Those of the values that the run does not have of this step."""
        if step != self._step:
            return dict(values) if step > self._step else {}
        return {name: value for name, value in values.items() if name not in self._curves}

    def send(self, step: int, values: Mapping[str, float]) -> None:
        """Adds to the row of a step. The row before it is handed over."""
        if step != self._step:
            self._flush()
            self._step, self._curves = step, set()
        self._row |= values
        self._curves |= set(values)

    def close(self, finished: bool) -> None:
        """Hands the last row over, and waits until W&B has it."""
        self._flush()
        self._run.finish(exit_code=0 if finished else 1)

    def _flush(self) -> None:
        if self._row:
            self._note()
            self._run.log(self._row, step=self._step, commit=True)
            self._row = {}

    def _note(self) -> None:
        write_json(self._path, {"id": self._id, "step": self._step, "curves": sorted(self._curves)})
