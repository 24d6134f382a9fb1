"""What a benchmark found: printed beside its target, and as JSON."""

import dataclasses
import json
import pathlib


@dataclasses.dataclass(frozen=True)
class Result:
    """One figure.

    Attributes:
      name: what was measured. value: the figure. unit: 'x' for a ratio, else a unit ('ms', 'images/s', 'GB').
      target: what it is to reach, or None where it only informs. better: 'higher' or 'lower'.
    """

    name: str
    value: float
    unit: str = "x"
    target: float | None = None
    better: str = "higher"

    @property
    def reached(self) -> bool:
        """Whether the target is met; True where there is none."""
        if self.target is None:
            return True
        return self.value >= self.target if self.better == "higher" else self.value <= self.target

    def __str__(self) -> str:
        text = f"{self.name}: {self.value:.4g} {self.unit}"
        if self.target is None:
            return text
        bound = "at least" if self.better == "higher" else "at most"
        return f"{text} ({bound} {self.target:g}: {'PASS' if self.reached else 'SHORT'})"


def write(benchmark: str, results: list[Result], quick: bool, path: str | None) -> None:
    """Prints the results, and writes them as one JSON object where a path is given."""
    for result in results:
        print(result)
    if path:
        rows = [dataclasses.asdict(result) for result in results]
        text = json.dumps({"benchmark": benchmark, "quick": quick, "results": rows}, indent=1)
        pathlib.Path(path).write_text(text + "\n")
