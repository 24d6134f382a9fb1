"""Handwritten digits: the smallest whole run, and the default of every script.

    python train.py
    python search.py
    python eval.py

1,797 images of 8x8 pixels that come with scikit-learn; nothing is downloaded.
Time: 40 seconds on 2 CPU cores, and about a minute for the first compile; the search takes half a minute.
Result: 98.61% top-1 for the biggest child (1.40 M multiply-adds), 94.43% for the smallest (0.05 M), on 359 images.
"""

from ml_collections import ConfigDict

from bignas_jax.config import base


def get_config() -> ConfigDict:
    config = base()
    config.batch_size = 64
    config.epochs = 20
    config.num_devices = 1  # a batch of so small images is no work for more

    stages = dict(
        mb1=dict(width=(8, 16), depth=(1,), kernel_size=(3,), expand_ratio=(1,), stride=1, se=False),
        mb2=dict(width=(16, 24), depth=(1, 2), kernel_size=(3, 5), expand_ratio=(2, 3), stride=2, se=True),
        mb3=dict(width=(24, 32), depth=(1, 2), kernel_size=(3, 5), expand_ratio=(3, 4), stride=2, se=True),
    )
    config.space = ConfigDict(dict(
        resolution=(6, 10, 16), stem_width=(8, 16), stem_stride=1,
        head_width=(64,), v3_head=False, activation="swish", stages=stages,
    ))
    config.model.num_classes = 10

    config.data.update(dict(
        source="digits", root="", train_split="train", val_split="val", holdout=400,
        image_size=16, eval_resize=16, mean=(0.305, 0.305, 0.305), std=(0.376, 0.376, 0.376),
        num_workers=0, on_corrupt="error",
        augment=dict(crop="padded", crop_scale=(0.08, 1.0), crop_ratio=(0.75, 1.3333), padding=1, flip=0.0,
                     policy="none", rand_ops=2, rand_magnitude=9, color_jitter=(0.0, 0.0, 0.0, 0.0)),
    ))

    config.optimizer.learning_rate = 0.1
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 5.0

    config.calibration.update(dict(num_images=1024, batch_size=128))
    config.evaluation = ConfigDict(dict(batch_size=120, every_epochs=5.0))
    config.search.num_evaluations = 150
    config.checkpoint.every_steps = 200
    config.log.every_steps = 10
    return config
