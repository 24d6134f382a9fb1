"""A child's files, each run back and compared with the child."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bignas_jax.errors import ConfigError, ExportError
from bignas_jax.files import write_bytes, write_json
from bignas_jax.interop.exports import export
from bignas_jax.interop.exports.preprocess import preprocess
from bignas_jax.interop.exports.run_back import NO_TELEMETRY
from bignas_jax.interop.exports.tensors import tensors
from bignas_jax.nets import child as nets

if TYPE_CHECKING:
    from bignas_jax.api.child import Child

NOISE = 16  # images of noise to compare on, where no data set is opened


def write(
    child: Child, formats: Sequence[str], folder: pathlib.Path, *, fold: bool, batch: int, images: int
) -> dict[str, pathlib.Path]:
    """Writes and checks a child's files. See `Child.export`."""
    if images < 0:
        raise ConfigError(f"images: found {images}, expected held-out images to compare on, or 0 for noise")
    form = export.Form(formats, fold, batch, max(images, 1))
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
    files = export.write_child(child.net(), folder, about, specification, form)
    found = export.run_child(folder, np.moveaxis(inputs, -1, 1), form)
    expected = child(inputs)
    files = [file | export.compare(found[file["format"]], expected) for file in files]
    row = about | {"folder": str(folder), "files": files, **compared}
    if "labels" in row:
        row["top1"] = float(np.mean(expected.argmax(1) == row.pop("labels")))
    write_json(folder / "export.json", row, indent=2)
    export.check([row])
    return {file["format"]: folder / file["file"] for file in files}


def write_features(child: Child, folder: pathlib.Path, *, fold: bool, batch: int) -> pathlib.Path:
    """Writes features.onnx, and holds its outputs against the child's own feature maps on noise."""
    export.Form(["onnx"], fold, batch)  # checks them
    os.environ.update(NO_TELEMETRY)
    import onnxruntime

    from bignas_jax.interop.exports.onnx_graph import onnx_model

    export.check_folder(folder, child.arch)
    folder.mkdir(parents=True, exist_ok=True)
    net = nets.fold(child.net()) if fold else child.net()
    about = {"architecture": child.arch.to_json(), "step": str(child.run.step)}
    path = folder / "features.onnx"
    write_bytes(path, onnx_model(net, tensors(net), batch, about, features_only=True).SerializeToString())
    noise = np.random.default_rng(0).standard_normal((batch or 4, child.resolution, child.resolution, 3))
    noise = noise.astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": np.moveaxis(noise, -1, 1)})
    for output, ours, name in zip(found, child.features(noise).values(), [o.name for o in session.get_outputs()],
                                  strict=True):  # fmt: skip
        expected = np.moveaxis(np.asarray(ours), -1, 1)
        difference = export.compare(output, expected)["difference"] if output.shape == expected.shape else np.inf
        if not difference <= export.LIMIT:
            raise ExportError(
                f"{path}: {name} differs from the child's by {difference:.1e} of its largest value, expected at most "
                f"{export.LIMIT:g}; do not use this file"
            )
    return path


def _inputs(child: Child, specification: dict[str, Any], number: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Normalised images [N, R, R, 3], and where they come from."""
    side = child.resolution
    if not number:
        noise = np.random.default_rng(0).standard_normal((NOISE, side, side, 3)).astype(np.float32)
        return noise, {"images": NOISE, "split": "noise"}
    real = export.real_images(child.run.session, number)
    images = np.stack([np.moveaxis(preprocess(image, specification), 0, -1) for image in real.decoded])
    return images, {"images": len(images), "split": real.split, "labels": real.labels}
