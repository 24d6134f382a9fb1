"""The problem of a search: a space, the costs of its architectures, and the budgets that the winners must keep."""

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bignas_jax.config.choices import Costs
from bignas_jax.config.options import Search
from bignas_jax.errors import ConfigError
from bignas_jax.runs.session import Session
from bignas_jax.search.device_table import DeviceTable
from bignas_jax.search.latency import LatencyTable
from bignas_jax.search.own_cost import OwnCost
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.cost import count
from bignas_jax.spaces.space import Space

COSTS = tuple(cost.value for cost in Costs)
# Budgets if the user names none, as fractions of the biggest architecture's cost.
FRACTIONS = (0.3, 0.5, 0.7)
_COUNTED = (Costs.MACS, Costs.PARAMS)  # kinds of cost that take no time
TRIES = 50  # uniform draws before a drawn architecture is shrunk until it fits


@dataclasses.dataclass(frozen=True)
class Budget:
    """Upper limits of costs, and the least of each; None means no limit. `name` can be the name of a folder."""

    name: str
    macs: float | None = None
    params: float | None = None
    latency_ms: float | None = None
    own: float | None = None
    min_macs: float | None = None
    min_params: float | None = None
    min_latency_ms: float | None = None
    min_own: float | None = None

    def limits(self) -> dict[str, float]:
        """The limits that are set, by kind of cost."""
        return {kind: getattr(self, kind) for kind in COSTS if getattr(self, kind) is not None}

    def floors(self) -> dict[str, float]:
        """The least that is asked for, by kind of cost, where it is."""
        least = {kind: getattr(self, f"min_{kind}") for kind in COSTS}
        return {kind: value for kind, value in least.items() if value is not None}


class Problem:
    """A space with costs and budgets.

    Args:
      space: the space that is searched, without resolutions above the cap.
      num_classes: classes of the classifier, which is part of the costs.
      budgets: the search finds a winner for each.
      cost: the kinds of cost of the front, by commas: 'macs', 'params', 'latency_ms' or 'own'.
      latency: gives an architecture's milliseconds; needed if a budget or `cost` uses them.
      own: gives an architecture's cost of the user's own; needed if a budget or `cost` uses it.
      bounded: True if architectures beyond every budget are of no use; False if they belong to the front.

    Raises:
      ConfigError: a budget is below what the smallest architecture costs, or asks for more than it allows.
    """

    def __init__(
        self,
        space: Space,
        num_classes: int,
        budgets: Sequence[Budget],
        cost: str = "macs",
        latency: Callable[[Architecture], float] | None = None,
        bounded: bool = True,
        own: Callable[[Architecture], float] | None = None,
    ):
        self.space, self.num_classes, self.bounded = space, num_classes, bounded
        self.front_costs = tuple(cost.split(","))
        self.budgets = tuple(budgets)
        self._latency, self._own = latency, own
        self._known: dict[Architecture, dict[str, float]] = {}
        for budget in self.budgets:
            self._check(budget)

    def costs(self, arch: Architecture) -> dict[str, Any]:
        """macs, params, latency_ms (None if it is not measured) and own (None if there is none)."""
        if arch not in self._known:
            cost = count(self.space, arch, self.num_classes)
            latency = None if self._latency is None else self._latency(arch)
            own = None if self._own is None else self._own(arch)
            self._known[arch] = {"macs": cost.macs, "params": cost.params, "latency_ms": latency, "own": own}
        return self._known[arch]

    @property
    def own_about(self) -> dict[str, str] | None:
        """What the user's own cost is; None if there is none."""
        return getattr(self._own, "about", None)

    def fits(self, arch: Architecture, budget: Budget) -> bool:
        """Whether `arch` is in the space that is searched, and keeps every limit of the budget."""
        return self._below(arch, budget) and self._reaches(arch, budget)

    def _below(self, arch: Architecture, budget: Budget) -> bool:
        """Whether `arch` is in the space and keeps the upper limits."""
        return arch in self.space and self._holds(arch, budget.limits(), lambda cost, limit: cost <= limit)

    def _reaches(self, arch: Architecture, budget: Budget) -> bool:
        """Whether `arch` costs at least as much as is asked for."""
        return self._holds(arch, budget.floors(), lambda cost, limit: cost >= limit)

    def _holds(self, arch: Architecture, limits: dict[str, float], within: Callable[[float, float], bool]) -> bool:
        if not limits:
            return True
        cheap = self._cheap_costs(arch)
        if not all(within(cheap[kind], limit) for kind, limit in limits.items() if kind in _COUNTED):
            return False
        return all(within(self.costs(arch)[kind], limit) for kind, limit in limits.items() if kind not in _COUNTED)

    def use(self, arch: Architecture, budget: Budget) -> float:
        """The fraction of a budget that `arch` uses, 1 being all. The limit that it comes nearest to counts.

        A budget without upper limits is that of the biggest architecture, on the front's axis.
        """
        costs = self.costs(arch)
        limits = budget.limits() or {self.cost: self.cost_of(self.space.biggest)}
        return max(costs[kind] / limit for kind, limit in limits.items())

    def _cheap_costs(self, arch: Architecture) -> dict[str, float]:
        """macs and params alone: a latency may need a measurement, and the user's own cost may take its time."""
        if arch in self._known:
            return self._known[arch]
        return dataclasses.asdict(count(self.space, arch, self.num_classes))

    @property
    def cost(self) -> str:
        """The kind of cost of the front's axis: the first one."""
        return self.front_costs[0]

    def cost_of(self, arch: Architecture) -> float:
        """The cost of `arch` on the front's axis."""
        return self.costs(arch)[self.cost]

    def costs_of(self, arch: Architecture) -> tuple[float, ...]:
        """All costs of `arch` that the front is drawn over."""
        return tuple(self.costs(arch)[kind] for kind in self.front_costs)

    def sample(self, budget: Budget, rng: np.random.Generator) -> Architecture:
        """An architecture within the budget, drawn uniformly. If these are rare, a drawn one is changed to fit.

        Within very narrow limits none may be found, and the last one is returned.
        """
        for _ in range(TRIES):
            arch = self.space.sample(rng)
            if self.fits(arch, budget):
                return arch
        for _ in range(TRIES if budget.floors() else 1):
            arch = self.shrink(self.space.sample(rng), budget, rng)
            if self.fits(arch, budget):
                break
        return arch

    def shrink(
        self, arch: Architecture, budget: Budget, rng: np.random.Generator, keep: Sequence[int] = ()
    ) -> Architecture:
        """`arch`, with randomly drawn choices lowered by one value at a time until it keeps the upper limits.

        Choices at the positions `keep` are lowered only when no others are left. If it costs less than the budget asks
        for then, choices are raised again as far as the upper limits allow it.
        """
        genes = list(self.space.indices(arch))
        while not self._below(self.space.at(genes), budget):
            above = [i for i, gene in enumerate(genes) if gene]
            if not above:
                break  # at the smallest: a latency does not always fall with the choices
            free = [i for i in above if i not in keep] or above
            genes[free[rng.integers(len(free))]] -= 1
        found = self.space.at(genes)
        return found if self._reaches(found, budget) else self.grow(found, budget, rng, enough=True)

    def grow(
        self,
        arch: Architecture,
        budget: Budget,
        rng: np.random.Generator,
        keep: Sequence[int] = (),
        enough: bool = False,
    ) -> Architecture:
        """`arch`, with randomly drawn choices raised by one value at a time while the budget allows it.

        Choices at the positions `keep` stay as they are. `enough` stops as soon as the budget's least is reached.
        """
        genes = list(self.space.indices(arch))
        free = [i for i, choice in enumerate(self.space.choices) if len(choice) > 1 and i not in keep]
        for i in rng.permutation(free):
            while genes[i] + 1 < len(self.space.choices[i]) and self.space.active(genes)[i]:
                genes[i] += 1
                if not self._below(self.space.at(genes), budget):
                    genes[i] -= 1
                    break
                if enough and self._reaches(self.space.at(genes), budget):
                    return self.space.at(genes)
        return self.space.at(genes)

    def _check(self, budget: Budget) -> None:
        least = self.costs(self.space.smallest)
        for kind, limit in budget.limits().items():
            if least[kind] > limit:
                raise ConfigError(
                    f"config.search.max_{kind}: found {limit:.10g}, expected at least "
                    f"{_accepted(least[kind], math.ceil)}, what the smallest architecture costs"
                )
        most = self.costs(self.space.biggest)
        for kind, floor in budget.floors().items():
            ceiling = min(most[kind], budget.limits().get(kind, math.inf))
            if floor > ceiling:
                whose = "what the biggest architecture costs" if ceiling == most[kind] else f"config.search.max_{kind}"
                raise ConfigError(
                    f"config.search.min_{kind}: found {floor:.10g}, expected at most "
                    f"{_accepted(ceiling, math.floor)}, {whose}"
                )


def capped(space: Space, max_resolution: int) -> Space:
    """The space without resolutions above the cap. A cap of 0 means no cap.

    Raises:
      ConfigError: no resolution is left.
    """
    if not max_resolution:
        return space
    least = space.resolutions[0]
    if least > max_resolution:
        raise ConfigError(
            f"config.search.max_resolution: found {max_resolution}, expected at least {least}, "
            f"the smallest resolution of the space, or 0 for no cap"
        )
    return space.restricted(max_resolution=max_resolution)


def budgets_of(options: Search, biggest: dict[str, Any], smallest: dict[str, Any]) -> tuple[Budget, ...]:
    """The budgets of a search. Value n of each kind belongs to budget n; a single value applies to all budgets.

    Without values, the budgets are `FRACTIONS` of the biggest architecture's cost, if the smallest fits them.

    Args:
      options: the options of the search.
      biggest: the biggest architecture's costs, by kind.
      smallest: the smallest architecture's costs, by kind.
    """
    cap = f"-r{options.max_resolution}" if options.max_resolution else ""
    given = options.limits()
    if not any((*given.values(), *options.floors().values())):
        kind = options.costs[0]
        parts = [part for part in FRACTIONS if part * biggest[kind] >= smallest[kind]] or [1.0]
        return tuple(
            Budget(f"{_UNITS[kind][0]}-{100 * part:.0f}pct{cap}", **{kind: part * biggest[kind]}) for part in parts
        )
    floors = options.floors()
    number = max(len(values) for values in (*given.values(), *floors.values()))
    found: dict[str, Budget] = {}
    for n in range(number):
        limits, least = (
            {kind: values[n if len(values) > 1 else 0] for kind, values in some.items() if values}
            for some in (given, floors)
        )
        name = "-".join(_name(kind, least.get(kind), limits.get(kind)) for kind in COSTS if {kind} & {*limits, *least})
        name += cap
        while name in found:
            name += "-again"
        found[name] = Budget(name, **limits, **{f"min_{kind}": value for kind, value in least.items()})
    return tuple(found.values())


def _name(kind: str, least: float | None, limit: float | None) -> str:
    """A part of a budget's name: 'macs-300M', 'macs-200M-to-300M' or 'macs-from-200M'."""
    parts = [f"from-{_short(least, kind)}"] if limit is None else [_short(limit, kind)]
    if least is not None and limit is not None:
        parts = [f"{_short(least, kind)}-to", *parts]
    return "-".join([_UNITS[kind][0], *parts])


_UNITS = {
    Costs.MACS: ("macs", 1e6, "M"),
    Costs.PARAMS: ("params", 1e6, "M"),
    Costs.LATENCY_MS: ("latency", 1, "ms"),
    Costs.OWN: ("own", 1, ""),
}

_WORDS = {Costs.MACS: "multiply-adds", Costs.PARAMS: "parameters", Costs.LATENCY_MS: "", Costs.OWN: "own cost"}


def _accepted(cost: float, rounded: Callable[[float], int]) -> str:
    """A cost for a message that says what would be accepted: thousandths, rounded so that this is true of them."""
    return f"{cost:.0f}" if cost == int(cost) else f"{rounded(1000 * cost) / 1000}"


def _short(limit: float, kind: str) -> str:
    _, scale, unit = _UNITS[kind]
    return f"{limit / scale:.4g}{unit}"


DRAWS = 200  # uniform draws from which the share of a budget is told


def allowed(problem: Problem, biggest: Architecture) -> list[str]:
    """A line for each budget: what it allows, beside MAX and MIN, before the search begins.

    Args:
      problem: the space, its costs and the budgets.
      biggest: MAX of the whole space, which a cap on the resolution may leave out.
    """
    rng = np.random.default_rng(0)
    drawn = [problem.space.sample(rng) for _ in range(DRAWS)]
    lines = []
    for budget in problem.budgets:
        limits, least = budget.limits(), budget.floors()
        parts = []
        for kind in (kind for kind in COSTS if kind in {*limits, *least}):
            low, high = problem.costs(problem.space.smallest)[kind], problem.costs(biggest)[kind]
            bottom, top = max(low, least.get(kind, low)), min(high, limits.get(kind, high))
            bounds = [f"{value / _UNITS[kind][1]:,.4g}" for value in (bottom, top, low, high)]
            unit = f"{_UNITS[kind][2]} {_WORDS[kind]}".strip()
            parts.append("{} to {} {unit} (MIN {}, MAX {})".format(*bounds, unit=unit))
        cheap = {*limits, *least} <= {*_COUNTED}  # a draw's latency may need a measurement
        kept = sum(problem.fits(arch, budget) for arch in drawn) if cheap else 0
        share = f"; {kept} of {DRAWS} uniform draws are within" if cheap else ""
        lines.append(f"{budget.name}: {', '.join(parts)}{share}")
    return lines


PREPARED = 40  # random architectures whose blocks are timed before a search with a limit of latency
PREPARED_AT_A_TIME = 10


def make_problem(
    session: Session, latency: LatencyTable | DeviceTable | None = None, tick: Callable[[], None] = lambda: None
) -> Problem:
    """The problem that the session's options describe.

    Args:
      session: the run's session.
      latency: the table of latencies, if a budget or the front's cost needs one.
      tick: called between measurements; an exception that it raises ends them.
    Raises:
      ConfigError: a budget is below what the smallest architecture costs, no resolution is below the cap, or the user's
        own cost cannot be computed.
    """
    options = session.options.search
    space = capped(session.space, options.max_resolution)
    own = OwnCost(options.own_cost, session.space, session.options.model.num_classes) if options.own_cost else None
    arguments = dict(
        num_classes=session.options.model.num_classes,
        latency=None if latency is None else latency.estimate,
        own=own,
    )
    if isinstance(latency, LatencyTable):
        _time_blocks(latency, space, tick)
    costs = Problem(space, budgets=(), **arguments).costs
    budgets = budgets_of(options, costs(space.biggest), costs(space.smallest))
    named = any((*options.limits().values(), *options.floors().values()))
    return Problem(space, budgets=budgets, cost=options.cost, bounded=bool(named), **arguments)


def _time_blocks(latency: LatencyTable, space: Space, tick: Callable[[], None]) -> None:
    """Times most blocks of the space before the search, many at a time: their programs compile side by side."""
    print("timing blocks of the network; each is timed once on a device and kept", file=sys.stderr)
    rng = np.random.default_rng(0)
    archs = [space.biggest, space.smallest, *(space.sample(rng) for _ in range(PREPARED))]
    for start in range(0, len(archs), PREPARED_AT_A_TIME):
        tick()
        latency.prepare(archs[start : start + PREPARED_AT_A_TIME])
