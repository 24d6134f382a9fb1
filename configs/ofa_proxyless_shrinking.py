"""Once-for-All's ProxylessNAS space, width 1.3, on ImageNet by progressive shrinking.

    python train.py --config configs/ofa_proxyless_shrinking.py

The space is that of configs/ofa_proxyless.py, the schedule that of configs/ofa_mbv3_shrinking.py.
Result: not run to the end yet.
"""

from ml_collections import ConfigDict

from configs import ofa_mbv3_shrinking, ofa_proxyless


def get_config() -> ConfigDict:
    config = ofa_proxyless.get_config()
    ofa_mbv3_shrinking.shrink(config)
    return config
