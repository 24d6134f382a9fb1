"""CIFAR-10 as a folder of 32x32 images, root/{train,test}/<class>/*: 50,000 to train on, 10,000 to test.

    python train.py --config configs/cifar10.py --config.data.root=data/cifar10
    python search.py --config configs/cifar10.py
    python eval.py --config configs/cifar10.py

Time: 49 minutes on one core of an Intel Xeon, an hour on two of an AMD EPYC; where there is time, `--config.epochs=100`
and more.
Result: 81.89% top-1 on the test images for the biggest child (9.41 M multiply-adds), 67.79% for the smallest (1.13 M).
"""

from ml_collections import ConfigDict

from bignas_jax.config import base


def get_config() -> ConfigDict:
    config = base()
    config.batch_size = 128
    config.epochs = 10

    # Strides of 1 in the stem and the first stage keep a map of 4x4 at the end of the biggest network.
    stages = dict(
        mb1=dict(width=(8, 16), depth=(1,), kernel_size=(3,), expand_ratio=(1,), stride=1, se=False),
        mb2=dict(width=(16, 24), depth=(1, 2), kernel_size=(3,), expand_ratio=(3, 4), stride=2, se=False),
        mb3=dict(width=(24, 32), depth=(1, 2, 3), kernel_size=(3, 5), expand_ratio=(3, 4), stride=2, se=True),
        mb4=dict(width=(56, 64, 72), depth=(1, 2, 3), kernel_size=(3, 5), expand_ratio=(4, 5), stride=2,
                 se=True),
    )
    config.space = ConfigDict(dict(
        resolution=(24, 28, 32), stem_width=(16,), stem_stride=1,
        head_width=(192, 256), v3_head=False, activation="swish", stages=stages,
    ))
    config.model.num_classes = 10

    config.data.update(dict(
        source="folder", root="data/cifar10", train_split="train", val_split="test", holdout=5000,
        image_size=32, eval_resize=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
        num_workers=1, on_corrupt="error",
        augment=dict(crop="padded", crop_scale=(0.08, 1.0), crop_ratio=(0.75, 1.3333), padding=4, flip=0.5,
                     policy="none", rand_ops=2, rand_magnitude=9, color_jitter=(0.0, 0.0, 0.0, 0.0)),
    ))

    # Chosen by trainings of 3, 4 and 10 epochs (docs/training.md, What was tried for small images).
    config.sandwich.loss = "trusted_teacher"
    config.sandwich.student_weight, config.sandwich.student_ramp = 0.5, 1.0
    config.optimizer.learning_rate = 0.2
    config.optimizer.warmup_epochs = 0.5
    config.optimizer.weight_decay = 5e-4
    config.optimizer.clip_norm = 5.0

    config.calibration.update(dict(num_images=2048, batch_size=128))
    config.evaluation = ConfigDict(dict(batch_size=256, every_epochs=1.0))
    # A preview takes a batch of each: small ones lose most candidates soonest (README.md, Search).
    config.search.update(dict(calibration_images=1024, preview=True))
    return config
