"""Parts of a user's own, as a config names them."""

import jax

from bignas_jax.ops.losses import cross_entropy


class Gap:
    """Cross-entropy with the labels; how much more the teacher's soft predictions cost is logged."""

    metrics = ("gap",)

    def __init__(self, recipe):
        pass

    def __call__(self, logits, targets, teacher_logits):
        own = cross_entropy(logits, targets)
        if teacher_logits is None:
            return own, {"gap": 0 * own}
        return own, {"gap": cross_entropy(logits, jax.nn.softmax(teacher_logits)) - own}
