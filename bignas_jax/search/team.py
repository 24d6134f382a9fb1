"""The processes of a search. The first one searches and writes; the others compute their part of what it asks for.

So all of them run the same programs in the same order, whatever the first one bases its choice on: measured latencies,
a predictor, an earlier journal. One message an evaluation tells them what is next.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from bignas_jax.programs.buckets import Bucket
from bignas_jax.programs.processes import gather, own_index
from bignas_jax.runs.assess import assess
from bignas_jax.runs.session import Session
from bignas_jax.search.held_out import HeldOut, Part
from bignas_jax.spaces.architecture import Architecture


class Team:
    """Evaluations by all processes. The first calls its methods, the others `follow` it. One alone is a team, too.

    Args:
      session: the run's session.
      weights: the supernet's weights, on the mesh.
      held_out: images and executables.
    """

    def __init__(self, session: Session, weights: Any, held_out: HeldOut):
        self._session, self._weights, self._held_out = session, weights, held_out
        self.sizes = held_out.sizes
        self._fresh = False  # whether the others may drop the statistics that they keep

    def begin_round(self) -> None:
        """Statistics that were calibrated before are not used any more."""
        self._fresh = True

    def calibrate(self, arch: Architecture, preview: bool = False) -> Any:
        """As `HeldOut.calibrate`."""
        gather({"do": "calibrate", "architecture": arch.to_dict(), "fresh": self._fresh, "preview": preview})
        self._fresh = False
        return self._held_out.calibrate(arch, preview)

    def outcomes(self, arch: Architecture, statistics: Any, part: Part) -> np.ndarray:
        """As `HeldOut.outcomes`."""
        gather({"do": "score", "architecture": arch.to_dict(), "part": part.value})
        return self._held_out.outcomes(arch, statistics, part)

    def validate(self, archs: Iterable[Architecture]) -> list[dict[str, Any]]:
        """The rows of `assess` on the validation split, each architecture in an executable of its own."""
        archs = list(archs)
        gather({"do": "validate", "architectures": [arch.to_dict() for arch in archs]})
        return self._validate(archs)

    def dismiss(self, result: dict[str, Any]) -> None:
        """Lets the others go, with the search's result."""
        gather({"do": "end", "result": result})

    def follow(self) -> dict[str, Any]:
        """Does what the first process asks for, until it has the search's result."""
        statistics: dict[tuple[Architecture, bool], Any] = {}
        while (order := gather(None)[0])["do"] != "end":
            if order["do"] == "validate":
                self._validate([Architecture.from_dict(arch) for arch in order["architectures"]])
                continue
            arch = Architecture.from_dict(order["architecture"])
            if order["do"] == "calibrate":
                statistics = {} if order["fresh"] else statistics
                statistics[arch, order["preview"]] = self._held_out.calibrate(arch, order["preview"])
            else:
                part = Part(order["part"])
                self._held_out.outcomes(arch, statistics[arch, part.is_preview], part)
        return order["result"]

    def _validate(self, archs: list[Architecture]) -> list[dict[str, Any]]:
        placement = {arch: Bucket(arch, masked=False) for arch in archs}
        self._session.compile_evaluation(placement.values(), progress=own_index() == 0)
        return assess(self._session, self._weights, placement, "val")
