"""The two sides that benchmarks/step.py times: our step, and PyTorch's (benchmarks/peer.py), found equal first."""

import dataclasses
import time

import jax
import numpy as np
import torch
from peer import Peer, PeerStep, agreement, noise, torch_device

from bignas_jax.config.options import Options
from bignas_jax.programs.devices import SPLIT, make_mesh
from bignas_jax.programs.weights import build
from bignas_jax.step.members.protocol import Part
from bignas_jax.step.members.registry import make_members
from bignas_jax.step.optimizer import optimizer, schedule
from bignas_jax.step.recipe import Recipe
from bignas_jax.step.train_step import TrainStep

TOLERANCE = 1e-2  # of float32
GATE_IMAGES = 8  # of the float32 check before a bfloat16 one: a few images show an error
FORMS = {"eager": ("conv", "linear"), "compile": ("linear",)}  # Inductor fuses the operations around a product


class Ours:
    """Our sandwich step on images that lie on the device."""

    def __init__(self, config, space, dtype, params, images, labels, remat=False):
        self.space = space
        options = Options.of(config)
        self.recipe = dataclasses.replace(Recipe.of(options), remat=remat)
        graphdef = build(space, config.model.num_classes, dtype=dtype)[0]
        mesh = make_mesh(1, {})
        rate = schedule(options.optimizer, 1000, options.epochs)
        self.sandwich = TrainStep(space, graphdef, self.recipe, optimizer(options.optimizer, rate), mesh, rate)
        self.state = self.sandwich.init(params)
        sharding = jax.sharding.NamedSharding(mesh, SPLIT)
        self.batch = jax.device_put({"image": images, "label": labels.astype(np.int32)}, sharding)
        start = time.perf_counter()
        self.sandwich.compile(self.state, self.batch)
        self.compile_seconds = time.perf_counter() - start

    def peak_bytes(self) -> dict[str, int]:
        """The bytes that XLA planned for each executable: arguments, results and temporaries; donated buffers once."""
        peak = {}
        for key, executable in self.sandwich.executables.items():
            plan = executable.memory_analysis()
            parts = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
            peak[program_name(key)] = parts + plan.temp_size_in_bytes
        return peak

    def member(self, arch, targets=None, total=None):
        """The gradient and the predictions of a member, computed when this returns. The biggest has no `targets`."""
        biggest, masked, smallest = self.sandwich.members.around([arch])
        # A random member may be the biggest architecture: it is a student all the same.
        member = biggest if targets is None else smallest if arch == smallest.arch else masked
        total, _, own = self.sandwich.learn(self.state.params, self.batch, member, 0, targets, total)
        return jax.block_until_ready((total, own if targets is None else targets))

    def step(self, number: int, archs) -> None:
        """Makes the step of this number, and waits for it."""
        del archs  # the step draws them again, from its number
        self.state, metrics = self.sandwich(self.state, self.batch, number)
        jax.block_until_ready(metrics)


class Theirs:
    """The peer's step on the same images, in one of its forms.

    Attributes:
      whole: whether it runs whole steps, or only the biggest and the smallest.
    """

    def __init__(self, config, space, dtype, params, images, labels, form: str, pointwise: str):
        device = torch_device()
        self.space, self.whole, self.tuned = space, form != "compile", False
        self.images, self.labels = torch.tensor(images, device=device), torch.tensor(labels, device=device)
        self.run = PeerStep(
            Peer(space, params, pointwise, device), config.data.mean, config.data.std,
            config.sandwich.label_smoothing, config.optimizer.clip_norm, weight_decay=config.optimizer.weight_decay,
            autocast=dtype == "bfloat16", compiled=form == "compile",
        )  # fmt: skip

    def member(self, arch, targets=None, total=None):
        """The gradient and the soft predictions of a member, computed when this returns."""
        del total  # it lies in the weights' .grad
        torch.backends.cudnn.benchmark = self.tuned
        label = self.labels if targets is None else None
        targets = self.run.member(self.images, arch, label=label, targets=targets)
        self._wait()
        return None, targets

    def update(self) -> None:
        """Makes the update, and waits for it."""
        self.run.update()
        self._wait()

    def step(self, number: int, archs) -> None:
        """Makes a step on these architectures, and waits for it."""
        del number
        torch.backends.cudnn.benchmark = self.tuned
        self.run(self.images, self.labels, archs)
        self._wait()

    def tune(self, steps) -> None:
        """On a GPU, chooses between cuDNN's heuristics and its search, by timed steps that both ran once before."""
        if not self.images.is_cuda:
            return
        times = {}
        for self.tuned in (False, True):
            for number, archs in enumerate(steps):
                self.step(number, archs)
            times[self.tuned] = sum(seconds(self.step, number, archs)[0] for number, archs in enumerate(steps))
        self.tuned = min(times, key=times.get)
        torch.cuda.empty_cache()  # the search's workspaces
        print(f"cuDNN searches: {self.tuned} ({times[False]:.2f} s without, {times[True]:.2f} s with)")

    def _wait(self) -> None:
        if self.images.is_cuda:
            torch.cuda.synchronize()


def start_weights(space, num_classes):
    """Fresh weights on the host. Batch norm's scales are drawn around 1: at 0 most gradients would vanish."""
    params = jax.device_get(build(space, num_classes)[1])
    rng = np.random.default_rng(0)

    def draw(path, value):
        return rng.uniform(0.5, 1.5, value.shape).astype(np.float32) if path[-1].key == "scale" else value

    return jax.tree_util.tree_map_with_path(draw, params)


def check(ours: Ours, theirs: Theirs, archs, dtype: str) -> dict[str, float]:
    """The largest differences of predictions and gradients, for the biggest and for students; see peer.py.

    Raises:
      SystemExit: they compute different things.
    """
    first = archs[0]
    exact, worst = dtype == "float32", {}
    gradient, logits = ours.member(first)
    targets = np.asarray(jax.nn.softmax(logits))
    for arch in dict.fromkeys(archs):  # each once: if the biggest is drawn again, its gradient is rounding alone
        soft, given = None, {"label": theirs.labels}
        if arch is first:
            soft = targets
        else:
            gradient, _ = ours.member(arch, logits, jax.tree.map(jax.numpy.zeros_like, gradient))
            given = {"targets": torch.tensor(targets, device=theirs.images.device)}
        if exact:
            found = agreement(gradient, soft, theirs.run, theirs.images, arch, **given)
        else:
            found = noise(gradient, theirs.run, theirs.images, arch, **given)
        worst |= {name: max(value, worst.get(name, 0.0)) for name, value in found.items()}
    print(f"{dtype}, {'relative difference to the peer' if exact else 'times the noise that is allowed'}, largest:",
          ", ".join(f"{k} {v:.2g}" for k, v in worst.items()))  # fmt: skip
    bound, names = (TOLERANCE, worst) if exact else (1.0, ("parameter", "gradient"))
    if not max(worst[name] for name in names) <= bound:
        raise SystemExit(f"the two sides compute different things: expected differences under {bound:g}")
    return worst


def check_exactly(config, space, params, images, labels) -> None:
    """Runs `check` in float32 on a few images of the lowest resolution, before a run in bfloat16.

    Raises:
      SystemExit: they compute different things.
    """
    space = dataclasses.replace(space, resolution=space.resolution[:1])
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    arguments = config, space, "float32", params, images[:GATE_IMAGES], labels[:GATE_IMAGES]
    with jax.default_matmul_precision("highest"):
        ours = Ours(*arguments)
    for pointwise in FORMS["eager"]:
        archs = make_members(space, ours.recipe).architectures(0)
        check(ours, Theirs(*arguments, "eager", pointwise), archs, "float32")


def prepare_compile(architectures: int) -> None:
    """Makes room in torch.compile for this many graphs, and removes the graphs of another form."""
    torch._dynamo.reset()
    for name in ("recompile_limit", "cache_size_limit"):  # the second one is the older name
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, max(64, 2 * architectures))
    torch._dynamo.utils.counters.clear()


def seconds(call, *args) -> tuple[float, object]:
    """The seconds of a call, and its result."""
    start = time.perf_counter()
    result = call(*args)
    return time.perf_counter() - start, result


def program_name(key: Part | str) -> str:
    """What the memory's table calls an executable of the step."""
    if isinstance(key, str) or key.first:
        return key if isinstance(key, str) else "the biggest"
    return f"{key.bucket.arch.resolution} px {'masked' if key.bucket.masked else 'sliced'}"
