"""Once-for-All's MobileNetV3 space, width 1.2, on ImageNet by progressive shrinking.

    python train.py --config configs/ofa_mbv3_w12_shrinking.py

The space is that of configs/ofa_mbv3_w12.py, the schedule that of configs/ofa_mbv3_shrinking.py.
Result: not run to the end yet.
"""

from ml_collections import ConfigDict

from configs import ofa_mbv3_shrinking, ofa_mbv3_w12


def get_config() -> ConfigDict:
    config = ofa_mbv3_w12.get_config()
    ofa_mbv3_shrinking.shrink(config)
    return config
