"""Once-for-All's MobileNetV3 family at the size of CIFAR-10, by the sandwich rule. The images are those of cifar10.py.

    python train.py --config configs/ofa_mbv3_cifar10.py --config.data.root=data/cifar10
    python search.py --config configs/ofa_mbv3_cifar10.py

Result: not run to the end yet.
"""

from ml_collections import ConfigDict

from configs import cifar10


def get_config() -> ConfigDict:
    config = cifar10.get_config()
    config.optimizer.learning_rate = 0.1

    # Strides of 1 in the stem and the first elastic stage keep a map of 4x4 at the end of the biggest network.
    elastic = dict(depth=(1, 2, 3), kernel_size=((3, 5, 7),) * 3, expand_ratio=((3, 4, 6),) * 3)
    stages = dict(
        mb0=dict(width=(16,), depth=(1,), kernel_size=(3,), expand_ratio=(1,), stride=1, se=False, activation="relu"),
        mb1=dict(elastic, width=(24,), stride=1, se=False, activation="relu"),
        mb2=dict(elastic, width=(32,), stride=2, se=True, activation="relu"),
        mb3=dict(elastic, width=(48,), stride=2, se=False, activation="h_swish"),
        mb4=dict(elastic, width=(64,), stride=2, se=True, activation="h_swish"),
    )
    config.space = ConfigDict(dict(
        family="ofa", resolution=(24, 28, 32), stem_width=(16,), stem_stride=1, head_width=(256,), v3_head=True,
        activation="h_swish", epsilon=1e-5, kernel_transforms=True, stages=stages,
    ))  # fmt: skip
    return config
