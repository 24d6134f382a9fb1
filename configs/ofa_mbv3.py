"""Once-for-All's MobileNetV3 space, width 1.0, on ImageNet (Cai et al., 2020), by the sandwich rule.

    python train.py --config configs/ofa_mbv3.py

For 8 GPUs, 80 images on each; ImageNet as data/imagenet/{train,val}/<class>/*. The space is the paper's: kernel and
expansion are chosen block by block. Its 25 resolutions are cut to the four of its own short list, so that few programs
are compiled. Batch size, learning rate and epochs are our choice, those of bignas.py. The paper's own training is in
ofa_mbv3_shrinking.py.
Result: not run to the end yet.
"""

from ml_collections import ConfigDict

from bignas_jax.config import base

# Output channels of the stem, of the six stages, and of the classifier's input.
WIDTHS = (16, 16, 24, 40, 80, 112, 160, 1280)
BLOCKS = 4  # of each elastic stage, at most


def space(widths: tuple[int, ...]) -> ConfigDict:
    """The space with these output channels of the stem, the stages and the head."""
    stem, first, *others, head = widths
    elastic = dict(depth=(2, 3, 4), kernel_size=((3, 5, 7),) * BLOCKS, expand_ratio=((3, 4, 6),) * BLOCKS)
    kinds = [  # stride, squeeze-and-excitation, activation
        (2, False, "relu"), (2, True, "relu"), (2, False, "h_swish"), (1, True, "h_swish"), (2, True, "h_swish"),
    ]  # fmt: skip
    stages = dict(mb0=dict(width=(first,), depth=(1,), kernel_size=(3,), expand_ratio=(1,), stride=1, se=False,
                           activation="relu"))  # fmt: skip
    for number, (width, (stride, se, activation)) in enumerate(zip(others, kinds, strict=True), 1):
        stages[f"mb{number}"] = dict(elastic, width=(width,), stride=stride, se=se, activation=activation)
    return ConfigDict(dict(
        family="ofa", resolution=(128, 160, 192, 224), stem_width=(stem,), stem_stride=2, head_width=(head,),
        v3_head=True, activation="h_swish", epsilon=1e-5, kernel_transforms=True, stages=stages,
    ))  # fmt: skip


def get_config() -> ConfigDict:
    config = base()
    config.batch_size = 640
    config.epochs = 365

    config.space = space(WIDTHS)
    config.model.num_classes = 1000
    config.model.dropout = 0.1

    config.data.update(dict(
        source="folder", root="data/imagenet", train_split="train", val_split="val", holdout=10000,
        image_size=224, eval_resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        num_workers=8, on_corrupt="error",
        augment=dict(crop="resized", crop_scale=(0.08, 1.0), crop_ratio=(0.75, 1.3333), padding=0, flip=0.5,
                     policy="none", rand_ops=2, rand_magnitude=9, color_jitter=(0.1255, 0.0, 0.5, 0.0)),
    ))  # fmt: skip

    config.sandwich.num_random = 2
    config.sandwich.label_smoothing = 0.1

    config.optimizer.learning_rate = 0.256
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.weight_decay = 3e-5
    config.optimizer.clip_norm = 5.0
    return config
