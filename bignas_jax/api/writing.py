"""A child's files, each run back and compared with the child."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from bignas_jax.errors import ConfigError
from bignas_jax.files import write_json
from bignas_jax.interop.exports import comparing, export
from bignas_jax.interop.exports.images import real_images
from bignas_jax.interop.exports.preprocess import preprocess

if TYPE_CHECKING:
    from bignas_jax.api.child import Child

NOISE = 16  # images of noise to compare on, where no data set is opened


def write(child: Child, form: export.Form, folder: pathlib.Path, *, images: int) -> dict[str, pathlib.Path]:
    """Writes and checks a child's files. See `Child.export`."""
    if images < 0:
        raise ConfigError(f"images: found {images}, expected held-out images to compare on, or 0 for noise")
    run = child.run
    export.check_folder(folder, child.arch)
    specification = export.preprocessing(run.options.data, run.class_names, child.resolution)
    about = {
        "name": folder.name,
        "architecture": child.arch.to_dict(),
        "macs": child.macs,
        "params": child.params,
        "step": run.step,
    }
    inputs, compared = _inputs(child, specification, images)

    def training(resolution: int) -> Iterable[np.ndarray]:
        return export.training_images(run.session, form, resolution)

    files = export.write_child(child.net(), folder, about, specification, form, training)
    found = export.run_child(folder, np.moveaxis(inputs, -1, 1), form)
    logits = child(inputs)
    expected = _maps(child, inputs) if form.features_only else logits
    files = [
        file
        | comparing.compare(found[file["format"]], expected)
        | (comparing.accuracy(file, found[file["format"]], compared["labels"]) if "labels" in compared else {})
        for file in files
    ]
    row = about | {"folder": str(folder), "files": files, **compared}
    if "labels" in row:
        row["top1"] = float(np.mean(logits.argmax(1) == row.pop("labels")))
    write_json(folder / "export.json", row, indent=2)
    comparing.check([row])
    return {"onnx" if form.features_only else file["format"]: folder / file["file"] for file in files}


def _maps(child: Child, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """The child's own feature maps, [N, C, H, W] by name."""
    return {name: np.moveaxis(np.asarray(value), -1, 1) for name, value in child.features(inputs).items()}


def _inputs(child: Child, specification: dict[str, Any], number: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Normalised images [N, R, R, 3], and where they come from."""
    side = child.resolution
    if not number:
        noise = np.random.default_rng(0).standard_normal((NOISE, side, side, 3)).astype(np.float32)
        return noise, {"images": NOISE, "split": "noise"}
    real = real_images(child.run.session, number)
    images = np.stack([np.moveaxis(preprocess(image, specification), 0, -1) for image in real.decoded])
    return images, {"images": len(images), "split": real.split, "labels": real.labels}
