"""Once-for-All's ResNet family at the size of CIFAR-10, by the sandwich rule. The images are those of cifar10.py.

    python train.py --config configs/ofa_resnet_cifar10.py --config.data.root=data/cifar10
    python search.py --config configs/ofa_resnet_cifar10.py

Result: not run to the end yet.
"""

from ml_collections import ConfigDict

from configs import cifar10

RATIOS = (0.2, 0.25, 0.35)


def get_config() -> ConfigDict:
    config = cifar10.get_config()
    config.optimizer.learning_rate = 0.1

    # A stem of stride 1 without pooling keeps a map of 4x4 at the end of the biggest network.
    stages = dict(rb0=dict(width=(16, 24, 32), depth=(1, 2), kernel_size=(3,), expand_ratio=(1,), stride=1))
    widths = ((40, 48, 64), (80, 104, 128), (168, 208, 256), (208, 256, 320))
    for number, (width, stride) in enumerate(zip(widths, (1, 2, 2, 2), strict=True), 1):
        stages[f"rb{number}"] = dict(
            width=width, depth=(1, 2, 3), kernel_size=(3,), expand_ratio=(RATIOS,) * 3, stride=stride
        )
    config.space = ConfigDict(dict(
        family="resnet", resolution=(24, 28, 32), stem_width=(8, 16), stem_stride=1, stem_pool=False, stages=stages,
        epsilon=1e-5,
    ))  # fmt: skip
    return config
