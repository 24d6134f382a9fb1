"""Once-for-All's MobileNetV3 family on CIFAR-10 by progressive shrinking. The images are those of cifar10.py.

    python train.py --config configs/ofa_cifar10.py --config.data.root=data/cifar10
    python search.py --config configs/ofa_cifar10.py

The full network first, then kernels, depths and expansion ratios (Cai et al., 2020, section 3.3), all by one command
(docs/shrinking.md). The space is that of configs/ofa_mbv3_cifar10.py. The learning rates are to each other as in
configs/ofa_mbv3_shrinking.py; so are the epochs, nearly.
Result: not run to the end yet.
"""

from ml_collections import ConfigDict

from configs import ofa_mbv3_cifar10
from configs.ofa_mbv3_shrinking import phase


def get_config() -> ConfigDict:
    config = ofa_mbv3_cifar10.get_config()
    config.sandwich.members, config.sandwich.num_random = "slices", 4
    config.sandwich.loss = "soft_cross_entropy"
    config.sandwich.label_smoothing = 0.1
    config.teacher.source = "phase:p0_full"

    config.phases = ConfigDict(dict(
        p0_full=phase(12, 0.1, 0.5, 1, kernel_size=1, depth=1, expand_ratio=1),
        p1_kernel=phase(8, 0.037, 0.3, 1, depth=1, expand_ratio=1),
        p2_depth=phase(2, 0.003, 0.0, 2, depth=2, expand_ratio=1),
        p3_depth=phase(8, 0.009, 0.3, 2, expand_ratio=1),
        p4_expand=phase(2, 0.003, 0.0, 4, expand_ratio=2),
    ))  # fmt: skip
    # The last phase is the run itself: all values of all choices.
    config.epochs = 8
    config.optimizer.learning_rate = 0.009
    config.optimizer.warmup_epochs = 0.3
    return config
