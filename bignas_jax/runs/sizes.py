"""Whether the numbers in a config fit its images; where they do not, numbers that work together."""

import dataclasses

from bignas_jax.config.options import Options
from bignas_jax.data.dataset import Images, most_held_out
from bignas_jax.errors import ConfigError
from bignas_jax.runs.identity import Use

STEPS = 4  # of an epoch at least, where a batch size has to be proposed
SHARE = 5  # one of so many training images is held out, where that number has to be proposed


@dataclasses.dataclass(frozen=True)
class Misfit:
    """A field whose value does not fit the images.

    Attributes:
      found: its value.
      expected: what would fit, in words.
      proposed: a value that works with what the other misfits propose.
    """

    found: int
    expected: str
    proposed: int


def check_sizes(options: Options, images: Images, devices: int, training: bool, use: Use) -> None:
    """Refuses options that do not fit the number of images or classes, all of them at once.

    Args:
      images: of the data, held out or not.
      devices: that a batch is divided over.
      training: whether `batch_size` matters.
      use: what is done with the run; a search needs its own calibration images.
    Raises:
      ConfigError: with every field that does not fit, and values that work together; one line.
    """
    total, classes = len(images.train), len(images.class_names)
    found = misfits(options, images, devices)
    if not training:
        found.pop("batch_size", None)
    fatal = set(found) - ({"search.calibration_images"} if use != Use.SEARCH else set())
    if not fatal:
        return
    listed = "; ".join(f"config.{name}: found {found[name].found}, expected {found[name].expected}"
                       for name in found if name in fatal)  # fmt: skip
    flags = " ".join(f"--config.{name}={misfit.proposed}" for name, misfit in found.items())
    raise ConfigError(f"{listed}; with {total:,} training images in {classes} classes these work together: {flags}")


def misfits(options: Options, images: Images, devices: int) -> dict[str, Misfit]:
    """The fields that do not fit the images, in the order in which each follows from those before it.

    Raises:
      ConfigError: there are fewer images to train on than devices.
    """
    found: dict[str, Misfit] = {}

    def at_most(name: str, value: int, most: int, proposed: int) -> int:
        if value > most:
            found[name] = Misfit(value, f"at most {most}", proposed)
        return min(value, most) if name not in found else proposed

    classes, total, most = len(images.class_names), len(images.train), most_held_out(images.train)
    if options.model.num_classes != classes:
        found["model.num_classes"] = Misfit(
            options.model.num_classes, f"{classes}, the classes of the data", classes
        )
    held_out = at_most("data.holdout", options.data.holdout, most, min(total // SHARE, most))
    left = total - held_out
    if left < devices:
        raise ConfigError(
            f"config.data.root: found {left} training images beside {held_out} held out, expected one at least for "
            f"each of the {devices} devices: add images, hold out fewer, or lower config.num_devices"
        )
    at_most("batch_size", options.batch_size, left, _batch(left // STEPS, devices))

    wanted = options.calibration.num_images
    batch = at_most("calibration.batch_size", options.calibration.batch_size, min(wanted, left),
                    _batch(min(wanted, left), devices))  # fmt: skip
    wanted = at_most("calibration.num_images", wanted, left, left // batch * batch)
    for_search = options.search.calibration_images
    at_most("search.calibration_images", for_search, left, wanted)
    if 0 < for_search < batch:
        found["search.calibration_images"] = Misfit(for_search, f"at least {batch}, a batch of calibration", wanted)
    return found


def _batch(most: int, devices: int) -> int:
    """A power of two times the number of devices: up to `most`, but one image a device at least."""
    size = devices
    while 2 * size <= most:
        size *= 2
    return size


def fitting(options: Options, images: Images, devices: int) -> Options:
    """The options with a batch, a held-out part and calibration that follow from the number of images.

    A number of the options stays where it fits: at most a fifth of the images held out, and at least 4 steps an epoch.
    The learning rate falls with the batch (Goyal et al., 2017, section 2.1).

    Raises:
      ConfigError: there are fewer images to train on than devices.
    """
    total, classes = len(images.train), len(images.class_names)
    held_out = min(options.data.holdout, total // SHARE, most_held_out(images.train))
    left = total - held_out
    batch = min(options.batch_size, _batch(max(left // STEPS, 1), devices))
    rate = options.optimizer.learning_rate * batch / options.batch_size
    options = dataclasses.replace(
        options,
        batch_size=batch,
        model=dataclasses.replace(options.model, num_classes=classes),
        data=dataclasses.replace(options.data, holdout=held_out),
        optimizer=dataclasses.replace(options.optimizer, learning_rate=rate),
    )
    for name, misfit in misfits(options, images, devices).items():
        group, _, field = name.rpartition(".")
        if not group:
            options = dataclasses.replace(options, **{field: misfit.proposed})
            continue
        part = dataclasses.replace(getattr(options, group), **{field: misfit.proposed})
        options = dataclasses.replace(options, **{group: part})
    return options
