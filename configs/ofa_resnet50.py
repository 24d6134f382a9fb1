"""Once-for-All's ResNet50D space on ImageNet (Cai et al., 2020; He et al., 2019), by the sandwich rule.

    python train.py --config configs/ofa_resnet50.py

All but the space is as in configs/ofa_mbv3.py. It goes from 315 M multiply-adds at 128 pixels to 7,492 M at 224.
Result: not run to the end yet.
"""

from ml_collections import ConfigDict

from configs import ofa_mbv3

# Output channels of the stem and of the four stages, at 0.65, 0.8 and 1.0 times ResNet50's.
STEM = (40, 48, 64)
WIDTHS = ((168, 208, 256), (336, 408, 512), (664, 816, 1024), (1328, 1640, 2048))
DEPTHS = ((2, 3, 4), (2, 3, 4), (4, 5, 6), (2, 3, 4))
RATIOS = (0.2, 0.25, 0.35)


def space() -> ConfigDict:
    stages = dict(rb0=dict(width=STEM, depth=(1, 2), kernel_size=(3,), expand_ratio=(1,), stride=1))
    for number, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True), 1):
        stages[f"rb{number}"] = dict(
            width=width, depth=depth, kernel_size=(3,), expand_ratio=(RATIOS,) * depth[-1],
            stride=1 if number == 1 else 2,
        )  # fmt: skip
    return ConfigDict(dict(
        family="resnet", resolution=(128, 160, 192, 224), stem_width=(24, 32), stem_stride=2, stem_pool=True,
        stages=stages, epsilon=1e-5,
    ))  # fmt: skip


def get_config() -> ConfigDict:
    config = ofa_mbv3.get_config()
    config.space = space()
    return config
