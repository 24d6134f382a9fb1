"""OpenVINO reads the ONNX files as they are, and its own form of them gives their logits."""

import numpy as np
import pytest

from bignas_jax.interop.exports import formats, integers, run_back
from bignas_jax.nets.child import fold, take

openvino = pytest.importorskip("openvino", reason="the extra openvino: 180 MB")


# What OpenVINO 2026.4 makes of integers by its low-precision passes is noise on some processors: docs/export.md.
@pytest.mark.parametrize("name, limit, setting", [
    ("onnx", 1e-5, {"INFERENCE_PRECISION_HINT": "f32"}), ("onnx-int8", 0.1, {"LP_TRANSFORMS_MODE": "NO"}),
])  # fmt: skip
def test_both_files_are_read_saved_and_run(tiny_v3, tmp_path, name, limit, setting):
    child = fold(take(tiny_v3.space, tiny_v3.params, tiny_v3.statistics, tiny_v3.space.biggest))
    side = child.arch.resolution
    images = np.random.default_rng(0).standard_normal((48, 3, side, side)).astype(np.float32)
    formats.write_onnx(child, tmp_path, 0, {})
    integers.write_integers(child, tmp_path, 0, {}, [images])
    core = openvino.Core()
    file = {"onnx": "child.onnx", "onnx-int8": formats.INTEGERS_FILE}[name]
    openvino.save_model(core.read_model(tmp_path / file), tmp_path / "child.xml", compress_to_fp16=False)
    found = core.compile_model(core.read_model(tmp_path / "child.xml"), "CPU", setting)(images)[0]
    expected = run_back.RUNNERS[name](tmp_path, images, 16)
    error = np.sqrt(np.mean((found - expected) ** 2)) / expected.std()
    assert error < limit
