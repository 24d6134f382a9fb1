"""Once-for-All's ResNet50D space on ImageNet by progressive shrinking: depths, expansion ratios, then widths.

    python train.py --config configs/ofa_resnet50_shrinking.py

The space is that of configs/ofa_resnet50.py. The authors' code has no schedule for it. The order of the phases and
their epochs are those of Sony's nnabla-nas. Learning rates and slices a step are as in configs/ofa_mbv3_shrinking.py.
Result: not run to the end yet.
"""

from ml_collections import ConfigDict

from configs import ofa_resnet50
from configs.ofa_mbv3_shrinking import phase, train_as_once_for_all


def get_config() -> ConfigDict:
    config = ofa_resnet50.get_config()
    train_as_once_for_all(config)
    config.phases = ConfigDict(dict(
        p0_full=phase(185, 2.6, 5.0, 1, depth=1, expand_ratio=1, width=1),
        p1_depth=phase(125, 0.24, 5.0, 2, expand_ratio=1, width=1),
        p2_expand=phase(25, 0.08, 0.0, 4, expand_ratio=2, width=1),
        p3_expand=phase(125, 0.24, 5.0, 4, width=1),
        p4_width=phase(25, 0.08, 0.0, 4, width=2),
    ))  # fmt: skip
    return config
