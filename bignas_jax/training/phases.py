"""A schedule of phases, one run after another (Cai et al., 2020, Once-for-All, section 3.3: progressive shrinking).

Each phase is a whole run in a folder of its own, `phases/<name>` in the run's folder. It starts from the last weights
of the phase before it. The run itself is the last one and lies in the run's folder, as any run does. Which phase is at
work follows from the checkpoints alone, so that nothing else has to be kept when one hands over to the next.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from bignas_jax.config.options import Options
from bignas_jax.config.phases import runs_of
from bignas_jax.data import open_images
from bignas_jax.data.fingerprint import fingerprint
from bignas_jax.errors import ConfigError
from bignas_jax.programs.processes import gather, own_index
from bignas_jax.runs.agree import check_options
from bignas_jax.runs.folder import PHASES, begun, scored_step, steps
from bignas_jax.runs.hold import held
from bignas_jax.runs.identity import Use, check_data, check_finished
from bignas_jax.runs.session import check_fit
from bignas_jax.spaces.registry import space_of
from bignas_jax.step.losses import loss_class
from bignas_jax.step.members.registry import members_class
from bignas_jax.text import shown
from bignas_jax.training.plan import Plan
from bignas_jax.training.teacher import check_heard

Rows = list[dict[str, Any]]


def through(options: Options, workdir: pathlib.Path, train: Callable[[Options, pathlib.Path], Rows]) -> Rows:
    """Trains the phases of `config.phases` that are not done, then the run itself.

    Args:
      options: of the run, with its phases if it has any.
      workdir: the run's folder.
      train: makes one run, or goes on with it: from its options and its folder to the rows of its last evaluation.
    Returns:
      The rows of the run itself.
    Raises:
      ConfigError: a phase cannot work, or the folder holds other phases; as `train` does; one line.
    """
    runs = runs_of(options)
    phases = [name for name in runs if name]
    if not phases:
        _check_no_phases(workdir)
        return train(runs[""], workdir)
    if gather(begun(workdir))[0]:  # the phases are over, and the run holds their config
        return train(runs[""], workdir)
    check_options(options)
    folders = {name: workdir / PHASES / name for name in phases}
    stops = _checked(runs, workdir)
    with held(workdir / PHASES, "training"):
        # Process 0 says which phase is at work: a network file system may show its files to others a little later.
        first = gather(max((n for n, name in enumerate(phases) if begun(folders[name])), default=0))[0]
        for number, name in enumerate(phases[first:], first + 1):
            if gather(_is_done(folders[name], stops[name]))[0]:
                check_finished(folders[name], runs[name])
                continue
            _say(f"phase {number} of {len(runs)}, {name}: in {folders[name]}")
            _say(_summary(name, train(runs[name], folders[name])))
        _say(f"phase {len(runs)} of {len(runs)}, the run itself: in {workdir}")
        return train(runs[""], workdir)


def _checked(runs: Mapping[str, Options], workdir: pathlib.Path) -> dict[str, int]:
    """The last step of each run by name, once all of them are known to fit the data, the devices and the folder."""
    images = open_images(runs[""].data, tell=own_index() == 0)
    stops = {}
    for name, options in runs.items():
        try:
            check_fit(options, images)
            members_class(space_of(options.space), options.sandwich.members)
            loss_class(options.sandwich.loss)
            check_heard(options)
        except ConfigError as error:
            raise ConfigError(f"phase {name or 'of the run itself'}: {error}") from error
        left = len(images.train) - options.data.holdout
        stops[name] = Plan.of(options, left // options.batch_size).stop
    found = _begun_in(workdir)
    if unknown := [name for name in found if name not in runs]:
        raise ConfigError(
            f"{workdir / PHASES} holds phases that config.phases does not have ({', '.join(unknown)}): give another "
            "--workdir, or the phases that the run was started with"
        )
    last = max((list(runs).index(name) for name in found), default=0)
    for name in found:
        check_data(workdir / PHASES / name, fingerprint(images), Use.GOING_ON)
        if list(runs).index(name) < last:
            check_finished(workdir / PHASES / name, runs[name])
    return stops


def _begun_in(workdir: pathlib.Path) -> list[str]:
    """The names of the phases in a run's folder that have checkpoints."""
    folder = workdir / PHASES
    return sorted(path.name for path in folder.iterdir() if begun(path)) if folder.is_dir() else []


def _check_no_phases(workdir: pathlib.Path) -> None:
    """Refuses a config without phases for a folder in which phases have begun, and the run itself has not."""
    if not begun(workdir) and (found := _begun_in(workdir)):
        raise ConfigError(
            f"config.phases: found none, but {workdir / PHASES} holds {', '.join(found)}: give the phases that the run "
            "was started with, or another --workdir"
        )


def _is_done(folder: pathlib.Path, stop: int) -> bool:
    """Whether a phase has made its steps, and was scored after the last one."""
    made = steps(folder)
    return begun(folder) and made[-1] >= stop and scored_step(folder) == made[-1]


def _summary(name: str, rows: Rows) -> str:
    rows = [row for row in rows if row["name"] in ("CHILD", "MAX", "MIN")]  # those after it
    scores = ", ".join(f"{100 * row['top1']:.2f}% ({row['name']})" for row in rows)
    return f"phase {name} is done: val top-1 {scores}"


def _say(line: str) -> None:
    if own_index() == 0:
        print(shown(line), flush=True)
