"""Once-for-All's ProxylessNAS space, width 1.3, on ImageNet (Cai et al., 2019 and 2020), by the sandwich rule.

    python train.py --config configs/ofa_proxyless.py

All but the space is as in configs/ofa_mbv3.py.
Result: not run to the end yet.
"""

from ml_collections import ConfigDict

from configs import ofa_mbv3

# Output channels of the stem, of the seven stages, and of the classifier's input.
WIDTHS = (40, 24, 32, 56, 104, 128, 248, 416, 1664)
STRIDES = (1, 2, 2, 2, 1, 2, 1)


def space(widths: tuple[int, ...]) -> ConfigDict:
    """The space with these output channels of the stem, the stages and the head."""
    stem, *others, head = widths
    stages = {}
    for number, (width, stride) in enumerate(zip(others, STRIDES, strict=True)):
        first, last = number == 0, number == len(others) - 1
        depth = (1,) if first or last else (2, 3, 4)
        stages[f"mb{number}"] = dict(
            width=(width,), depth=depth, stride=stride, se=False, activation="relu6",
            kernel_size=(3,) if first else ((3, 5, 7),) * depth[-1],
            expand_ratio=(1,) if first else ((3, 4, 6),) * depth[-1],
        )  # fmt: skip
    return ConfigDict(dict(
        family="ofa", resolution=(128, 160, 192, 224), stem_width=(stem,), stem_stride=2, head_width=(head,),
        v3_head=False, activation="relu6", epsilon=1e-3, kernel_transforms=True, stages=stages,
    ))  # fmt: skip


def get_config() -> ConfigDict:
    config = ofa_mbv3.get_config()
    config.space = space(WIDTHS)
    return config
