"""An ONNX file as a teacher. onnxruntime runs it on the host's CPU, before the members of a step.

It is called with the images that are on the devices, after mixup, and not by a callback from inside a program: a
program with a callback cannot be kept on disk, and the devices of one host would wait for each other inside it. Without
mixup the images of a step do not depend on the step before, so that this work overlaps with it.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bignas_jax.config.options import Data
from bignas_jax.errors import ConfigError
from bignas_jax.programs.devices import batch_sharding


@dataclasses.dataclass(frozen=True)
class Onnx:
    """A file with one input, float32 [B, 3, S, S], and the logits [B, classes] as its first output.

    The input is (pixels / 255 - mean) / std, as in `config.data`: what `export.py` writes files for.

    Attributes:
      content: the file.
      session: the onnxruntime session.
      mean: three numbers, one a channel, of images scaled to 0..1.
      std: three numbers, likewise.
      mesh: the devices.
    """

    content: bytes
    session: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mesh: Mesh
    identity: str = "onnx"

    @classmethod
    def of(cls, content: bytes, where: str, data: Data, num_classes: int, batch: int, mesh: Mesh) -> "Onnx":
        """The teacher in a file, after one call.

        Args:
          content: the file.
          where: the field and the path, for messages.
          data: of this run.
          num_classes: of this run.
          batch: images that this process has in a step.
          mesh: the devices.
        Raises:
          ConfigError: it is no ONNX file, it cannot run this run's batches, or it has other classes.
        """
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime reads it when it is imported
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what is wrong is said below, in one line
        try:
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ConfigError(f"{where}: onnxruntime cannot read it ({_line(error)}), expected an ONNX file") from error
        side = data.image_size
        expected = f"one input, float32 [{batch} or any, 3, {side}, {side}] for config.data.image_size {side}"
        found = [(given.type, given.shape) for given in session.get_inputs()]
        fits = len(found) == 1 and found[0][0] == "tensor(float)" and len(found[0][1]) == 4 and all(
            have in (None, want) or isinstance(have, str)
            for have, want in zip(found[0][1], (batch, 3, side, side), strict=True)
        )  # fmt: skip
        if not fits:
            told = ", ".join(f"{kind.removeprefix('tensor(').rstrip(')')} {shape}" for kind, shape in found)
            raise ConfigError(f"{where}: found the inputs {told}, expected {expected}")
        teacher = cls(content, session, tuple(data.mean), tuple(data.std), mesh)
        try:
            logits = teacher.run(np.zeros((batch, side, side, 3), np.uint8))
        except Exception as error:
            raise ConfigError(f"{where}: it does not run ({_line(error)}), expected {expected}") from error
        if logits.shape != (batch, num_classes):
            raise ConfigError(
                f"{where}: found an output {list(logits.shape)}, expected logits [{batch}, {num_classes}]: take a "
                "teacher of this run's classes"
            )
        return teacher

    def run(self, images: np.ndarray) -> np.ndarray:
        """Logits, float32 [B, classes], of uint8 [B, S, S, 3]."""
        scale, shift = (np.asarray(v, np.float32) for v in (255 * np.array(self.std), np.array(self.mean) / self.std))
        inputs = np.ascontiguousarray((images / scale - shift).transpose(0, 3, 1, 2), np.float32)
        return np.asarray(self.session.run(None, {self.session.get_inputs()[0].name: inputs})[0], np.float32)

    def programs(self, image: jax.ShapeDtypeStruct) -> dict[str, Callable[[], Any]]:
        """See `Teacher`: there are none."""
        return {}

    def logits(self, executables: Mapping[Any, Any], image: jax.Array) -> jax.Array:
        """See `Teacher`. Each process runs its own images."""
        parts = sorted(image.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        found = self.run(np.concatenate([np.asarray(part.data) for part in parts]))
        return jax.make_array_from_process_local_data(batch_sharding(self.mesh), found)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
