"""A child in 8-bit integers, as ONNX: convolutions and the classifier, by onnxruntime's own static quantisation.

Batch norm is folded first. Weights have a scale for each output channel, without an offset; activations have one scale
and an offset for each tensor, from the least and the greatest value over training images (Jacob et al., 2018, section
2). Activation functions, sums and means stay in float32 between them.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
import onnx

from bignas_jax.errors import ExportError, UserError
from bignas_jax.files import write_with
from bignas_jax.interop.exports.formats import INTEGERS_FILE
from bignas_jax.interop.exports.onnx_graph import INPUT, onnx_model
from bignas_jax.interop.exports.run_back import NO_TELEMETRY
from bignas_jax.interop.exports.tensors import tensors
from bignas_jax.nets.child import Child, fold
from bignas_jax.text import one_line

OPERATORS = ("Conv", "Gemm")
# onnxruntime warns of a model without this mark of its own preparation, which would fold what is folded here already.
# The file does not keep the mark.
_PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")


def write_integers(
    child: Child, folder: pathlib.Path, batch: int, about: dict[str, str], images: Iterable[np.ndarray]
) -> pathlib.Path:
    """Writes child-int8.onnx, whose input and output are float32 as those of child.onnx.

    Args:
      child: the child, folded or not.
      folder: where the file is written.
      batch: images of a call; 0 allows any number.
      about: properties of the model.
      images: batches of training images, float32 [B, 3, R, R], normalised. B is `batch` where that is fixed.
    Raises:
      ExportError: there are no images, or onnxruntime does not quantise the model.
    """
    os.environ.update(NO_TELEMETRY)  # read when onnxruntime is loaded
    try:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise ExportError(
            f"onnx-int8: found an onnxruntime whose quantization cannot be imported ({one_line(str(error))}), expected "
            "it whole: pip install --force-reinstall onnxruntime"
        ) from error

    child = fold(child)
    model = onnx_model(child, tensors(child), batch, about)
    model.metadata_props.add(key=_PREPARED[0], value=_PREPARED[1])
    reader = _reader(images)

    def write(temporary: pathlib.Path) -> None:
        with _one_line():
            quantize_static(
                model,
                temporary,
                reader,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(OPERATORS),
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
            )
        made = onnx.load(temporary)
        onnx.helper.set_model_props(made, about)
        if not any(node.op_type == "QuantizeLinear" for node in made.graph.node):
            raise ExportError(f"onnx-int8: found no {' or '.join(OPERATORS)} to quantise, expected at least one")
        temporary.write_bytes(made.SerializeToString())

    path = folder / INTEGERS_FILE
    write_with(path, write)
    return path


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """What onnxruntime raises, as an error of one line. Its errors have no class of their own."""
    try:
        yield
    except UserError:
        raise  # of the images
    except Exception as error:
        raise ExportError(f"onnx-int8: onnxruntime does not quantise the child: {one_line(str(error))}") from error


def _reader(images: Iterable[np.ndarray]):
    """The images as onnxruntime's calibration reads them: a dictionary at each call, then None."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self, parts: Iterator[np.ndarray]):
            self._parts, self._came = parts, False

        def get_next(self) -> dict[str, np.ndarray] | None:
            part = next(self._parts, None)
            if part is None:
                if not self._came:
                    raise ExportError("onnx-int8: found no training image to take the ranges from, expected some")
                return None
            self._came = True
            return {INPUT: np.ascontiguousarray(part, np.float32)}

    return Reader(iter(images))
