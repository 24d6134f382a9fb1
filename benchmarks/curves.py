"""Loss curves of our supernet and of the same one in PyTorch (benchmarks/peer.py), trained on the same batches.

    python benchmarks/curves.py --root data/cifar10 [--workdir exp/curves] [--configs configs/bignas.py,...]
        [--resolutions 48,64] [--batch 16] [--steps 200] [--learning-rate 0.05] [--json FILE]

Both sides take the recipe's space, augmentation, sandwich and optimizer, the same fresh weights, the same architectures
in each step and the same images, which our loader reads from ROOT. The recipe's schedule is compressed to the given
steps. Dropout and drop-connect are off, because each side draws them in its own way. Ours is float32.

Two trainings that differ by rounding alone drift apart, so two curves of one program would not lie on each other
either. That is why PyTorch trains twice, in float32 and in float64. The distance of these two curves is what rounding
makes of a training. The figure is our distance to PyTorch in float64 over that of PyTorch in float32, in root mean
squares over members and steps; 1 is as much rounding. A tenth more learning rate on one side, in a small space over 30
steps, gives more than 5 (tests/benchmarks/test_curves.py).

The curves of each recipe lie in WORKDIR/NAME.json, each from its end on, and a plot in WORKDIR/curves.png. What is
there is not run again.
"""

import argparse
import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from bignas_jax.programs import memory  # noqa: E402

memory.keep_freed_memory()

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from gpu.sources import peer_sources  # noqa: E402
from peer import TRAINED, Peer, PeerStep, torch_device  # noqa: E402
from report import Result, write  # noqa: E402

from bignas_jax.cli import scripts  # noqa: E402
from bignas_jax.config.names import flat  # noqa: E402
from bignas_jax.config.options import Options  # noqa: E402
from bignas_jax.config.recipes import load_recipe  # noqa: E402
from bignas_jax.data.dataset import open_dataset  # noqa: E402
from bignas_jax.data.loader import Loader  # noqa: E402
from bignas_jax.errors import ConfigError  # noqa: E402
from bignas_jax.files import write_text  # noqa: E402
from bignas_jax.programs.devices import batch_sharding, make_mesh  # noqa: E402
from bignas_jax.programs.kept import package, use_compilation_cache  # noqa: E402
from bignas_jax.programs.weights import build  # noqa: E402
from bignas_jax.spaces.mobilenet import SearchSpace  # noqa: E402
from bignas_jax.spaces.registry import space_of  # noqa: E402
from bignas_jax.step.members.registry import make_members  # noqa: E402
from bignas_jax.step.optimizer import optimizer, schedule  # noqa: E402
from bignas_jax.step.recipe import Recipe  # noqa: E402
from bignas_jax.step.train_step import TrainStep  # noqa: E402

OURS, SINGLE, DOUBLE = "ours", "PyTorch", "PyTorch, float64"
DTYPES = {SINGLE: torch.float32, DOUBLE: torch.float64}
COLOURS = {"biggest": "#1d4ed8", "random1": "#0d9488", "random2": "#a21caf", "smallest": "#f97316"}
STYLES = {OURS: "-", SINGLE: "--", DOUBLE: ":"}
# What a recipe must have for PyTorch's side to train the same; dropout is off, and images are mixed on the device.
EXPECTED = {f"sandwich.{name}": value for name, value in TRAINED.items()} | {
    "sandwich.members": "sandwich", "sandwich.resolve_conflicts": False, "teacher.source": "", "micro_batches": 1,
    "optimizer.name": "sgd", "optimizer.momentum": 0.9, "optimizer.nesterov": True, "optimizer.clip_value": 0.0,
    "data.augment.mixup": 0.0, "data.augment.cutmix": 0.0, "model.dtype": "float32",
}  # fmt: skip
TARGET = 2.0  # of the distance over the noise
WINDOW = 10  # steps that a point of a plotted curve is the mean of


@dataclasses.dataclass(frozen=True)
class Training:
    """What all sides of a comparison have in common.

    Attributes:
      options: the recipe, at the size that is trained here.
      classes: outputs of the classifier.
      steps: updates.
      batches: for each step the images uint8 [B, S, S, 3] and the labels int32 [B].
    """

    options: Options
    classes: int
    steps: int
    batches: list[tuple[np.ndarray, np.ndarray]]

    @property
    def space(self) -> SearchSpace:
        return space_of(self.options.space)

    @property
    def recipe(self) -> Recipe:
        return Recipe.of(self.options)

    @property
    def rate(self):
        """The recipe's schedule, its epochs compressed to the steps."""
        return schedule(self.options.optimizer, self.steps / self.options.epochs, self.options.epochs)


def reduced(path: str, args: argparse.Namespace) -> Training:
    """A recipe at the size of the comparison, with the batches that it draws.

    Args:
      path: the recipe's file.
      args: the command line.
    Raises:
      ConfigError: the recipe has what PyTorch's side has not.
    """
    config = load_recipe(path)
    found = Options.of(config)
    values = flat(found.to_dict())
    others = {name: value for name, value in EXPECTED.items() if values[name] != value}
    if others:
        given = ", ".join(f"{name}={values[name]!r}" for name in others)
        wanted = ", ".join(map(repr, others.values()))
        raise ConfigError(f"{path}: found {given}, expected {wanted}, as PyTorch's side trains")
    if type(space_of(found.space)) is not SearchSpace or found.phases:
        raise ConfigError(f"{path}: found another family or phases, expected BigNAS's blocks and one phase, as "
                          "PyTorch's side has")  # fmt: skip
    config.space.resolution = args.resolutions
    config.model.dropout = config.model.drop_connect = 0.0
    config.optimizer.learning_rate = args.learning_rate
    if config.data.source == "folder":
        config.data.root, config.data.val_split = args.root, args.val_split
    config.data.image_size = max(args.resolutions)
    config.data.eval_resize, config.data.holdout, config.data.num_workers = config.data.image_size, 0, 0
    options = Options.of(config)
    dataset = open_dataset(options.data, options.seed)
    loader = Loader(dataset, "train", batch_size=args.batch, train=True)
    batches = [(batch["image"], batch["label"]) for batch in itertools.islice(loader.epochs(0, args.steps), args.steps)]
    return Training(options, dataset.num_classes, args.steps, batches)


def ours(training: Training, params) -> list[list[float]]:
    """The losses of our members, [steps][members].

    Args:
      training: what is trained.
      params: the weights at the start.
    """
    mesh, options = make_mesh(1, {}), training.options
    graphdef = build(training.space, training.classes)[0]
    step = TrainStep(training.space, graphdef, training.recipe, optimizer(options.optimizer, training.rate), mesh,
                     training.rate)  # fmt: skip
    state = step.init(params)
    images, labels = training.batches[0]
    step.compile(state, jax.device_put({"image": images, "label": labels}, batch_sharding(mesh)))
    losses = []
    for number, (images, labels) in enumerate(training.batches):
        batch = jax.device_put({"image": images, "label": labels}, batch_sharding(mesh))
        state, metrics = step(state, batch, number)
        losses.append(np.asarray(metrics["loss"]).tolist())
    return losses


def theirs(training: Training, params, dtype: torch.dtype) -> list[list[float]]:
    """The losses of PyTorch's members, [steps][members].

    Args:
      training: what is trained.
      params: our weights at the start, nested.
      dtype: of everything.
    """
    recipe, members, device = training.recipe, make_members(training.space, training.recipe), torch_device()
    run = PeerStep(
        Peer(training.space, params, device=device, dtype=dtype), recipe.mean, recipe.std, recipe.label_smoothing,
        training.options.optimizer.clip_norm, weight_decay=training.options.optimizer.weight_decay,
    )  # fmt: skip
    losses = []
    for number, (images, labels) in enumerate(training.batches):
        images, labels = torch.tensor(images, device=device), torch.tensor(labels, device=device).long()
        spread = recipe.label_smoothing / training.classes
        wanted = (1 - recipe.label_smoothing) * F.one_hot(labels, training.classes) + spread
        found, teacher = [], None
        for arch in members.architectures(number):
            given = {"label": labels} if teacher is None else {"targets": teacher}
            soft = run.member(images, arch, **given)
            found.append(float(-(wanted * soft.log()).sum(-1).mean()))
            teacher = wanted = soft if teacher is None else teacher
        for group in run.optimizer.param_groups:
            group["lr"] = float(training.rate(number))
        run.update()
        losses.append(found)
    return losses


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square over members and steps, in nats.

    Args:
      a, b: losses [steps, members].
    """
    return float(np.sqrt(np.mean(np.square(a - b))))


def figures(curves: dict[str, np.ndarray]) -> dict[str, float]:
    """The distances to PyTorch in float64, in nats: ours, that of PyTorch in float32, and their ratio.

    Args:
      curves: by side, losses [steps, members].
    """
    mine, noise = (distance(curves[side], curves[DOUBLE]) for side in (OURS, SINGLE))
    return {"ours": mine, "noise": noise, "ratio": mine / noise}


def smooth(values: np.ndarray) -> np.ndarray:
    """Means of WINDOW steps, [steps - WINDOW + 1]; of all steps where there are fewer."""
    window = min(WINDOW, len(values))
    return np.convolve(values, np.full(window, 1 / window), "valid")


def draw(found: dict[str, dict], path: pathlib.Path) -> None:
    """Plots the curves: a panel for each recipe, a colour for each member, a style of line for each side.

    Args:
      found: for each recipe the names of its members and, by side, losses [steps, members].
      path: the file to write.
    """
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(found), figsize=(5.4 * len(found), 4), layout="constrained", squeeze=False)
    for axes, (recipe, saved) in zip(panels[0], found.items(), strict=True):
        for side, losses in saved["curves"].items():
            for name, values in zip(saved["members"], np.array(losses).T, strict=True):
                points = smooth(values)
                steps = np.arange(len(points)) + len(values) - len(points) + 1
                label = name if side == OURS else side if name == saved["members"][-1] else None
                colour = COLOURS.get(name, "#57534e")
                axes.plot(steps, points, STYLES[side], color=colour, label=label, lw=1.8 if side == OURS else 1.1)
        axes.set(title=recipe, xlabel="step", ylabel=f"loss, mean of {WINDOW} steps (nats)")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def digest(training: Training) -> str:
    """Of what all sides of a comparison must have alike: the recipe, the images, and the code of both sides."""
    found = hashlib.sha256(f"{training.options} {package()} {peer_sources()}".encode())
    for images, labels in training.batches:
        found.update(images.tobytes() + labels.tobytes())
    return found.hexdigest()


def compared(path: str, args: argparse.Namespace) -> dict:
    """The members' names and the curves of all sides for one recipe, from its file if that is there."""
    name = pathlib.Path(path).stem
    kept = args.workdir / f"{name}.json"
    given = {"resolutions": list(args.resolutions), "batch": args.batch, "steps": args.steps,
             "learning_rate": args.learning_rate}  # fmt: skip
    saved = json.loads(kept.read_text()) if kept.exists() else {"given": given, "curves": {}}
    if saved["given"] != given:
        raise ConfigError(f"{kept}: found a comparison with {saved['given']}, expected {given}: take another --workdir")
    if SIDES.keys() <= saved["curves"].keys():
        return saved
    training = reduced(path, args)
    rests_on = digest(training)
    if saved["curves"] and saved.get("rests_on") != rests_on:
        print(f"{kept}: other code, another recipe or other images made these curves; they are made again", flush=True)
        saved["curves"] = {}
    saved["rests_on"] = rests_on
    saved["members"] = list(make_members(training.space, training.recipe).names)
    params = jax.device_get(build(training.space, training.classes)[1])
    args.workdir.mkdir(parents=True, exist_ok=True)
    for side, train in SIDES.items():
        if side not in saved["curves"]:
            print(f"{name}: {side}", flush=True)
            saved["curves"][side] = train(training, params)
            write_text(kept, json.dumps(saved))
    return saved


# How each curve is made; ours is drawn first.
SIDES = {OURS: ours} | {side: functools.partial(theirs, dtype=dtype) for side, dtype in DTYPES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data/cifar10", help="a folder of images, ROOT/train/CLASS/*")
    parser.add_argument("--val-split", default="test", help="the other folder in ROOT, whose images stay unseen")
    parser.add_argument("--workdir", type=pathlib.Path, default="exp/curves")
    parser.add_argument("--configs", default="configs/bignas.py,configs/attentive_nas.py")
    parser.add_argument("--resolutions", default="48,64", help="the space's, ascending")
    parser.add_argument("--batch", type=int, default=16, help="images a step")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--json", help="file to write the results to")
    args = parser.parse_args()
    sides = args.resolutions.split(",")
    if not all(side.isdecimal() and int(side) for side in sides):
        raise ConfigError(f"--resolutions: found {args.resolutions!r}, expected whole numbers, such as 48,64")
    args.resolutions = tuple(map(int, sides))
    use_compilation_cache()
    found = {pathlib.Path(path).stem: compared(path, args) for path in args.configs.split(",")}
    results = []
    for name, saved in found.items():
        curves = {side: np.array(losses) for side, losses in saved["curves"].items()}
        measured = figures(curves)
        print(f"{name}: root mean square of the difference to PyTorch in float64: ours {measured['ours']:.2g} nats, "
              f"PyTorch in float32 {measured['noise']:.2g} nats")  # fmt: skip
        title = f"{name}: distance to PyTorch's curves over rounding's"
        results.append(Result(title, measured["ratio"], "x", TARGET, "lower"))
        last = {side: losses[-20:].mean(0) for side, losses in curves.items()}
        for side, losses in last.items():
            told = ", ".join(f"{member} {loss:.3f}" for member, loss in zip(saved["members"], losses, strict=True))
            print(f"  {side}, mean of the last 20 steps: {told}")
    draw(found, args.workdir / "curves.png")
    write("curves", results, False, args.json)


if __name__ == "__main__":
    sys.exit(scripts.run(sys.argv[0], main))
