"""Once-for-All's MobileNetV3 space, width 1.2, on ImageNet (Cai et al., 2020), by the sandwich rule.

    python train.py --config configs/ofa_mbv3_w12.py

All but the widths and the resolutions is as in configs/ofa_mbv3.py.
Result: not run to the end yet.
"""

from ml_collections import ConfigDict

from configs import ofa_mbv3

WIDTHS = (24, 24, 32, 48, 96, 136, 192, 1536)


def get_config() -> ConfigDict:
    config = ofa_mbv3.get_config()
    config.space = ofa_mbv3.space(WIDTHS)
    return config
