"""Once-for-All's MobileNetV3 space, width 1.0, on ImageNet by progressive shrinking, as its authors train it.

    python train.py --config configs/ofa_mbv3_shrinking.py
    python search.py --config configs/ofa_mbv3_shrinking.py

The full network first, then kernels, depths and expansion ratios (Cai et al., 2020, section 3.3). Epochs, learning
rates and slices a step are those of their train_ofa_net.py, for 2,048 images a step (64 on each of 32 GPUs). Their code
lacks the full network: its learning rate is the one that they name in their issue 32, its 185 epochs are those of
Sony's nnabla-nas. What differs from theirs is listed in docs/shrinking.md. With fewer images a step, lower batch_size
and all learning rates alike; config.micro_batches saves memory instead.
Result: not run to the end yet.
"""

from ml_collections import ConfigDict

from configs import ofa_mbv3


def phase(epochs: int, learning_rate: float, warmup: float, slices: int, **largest: int) -> dict:
    """A phase. `largest` says how many of the largest values of a kind of choice are open; of other kinds all are."""
    return dict(
        largest=largest,
        epochs=epochs,
        optimizer=dict(learning_rate=learning_rate, warmup_epochs=warmup),
        sandwich=dict(num_random=slices),
    )


def train_as_once_for_all(config: ConfigDict) -> None:
    """What all phases share, and the last one: all values of all choices, from the phase before it."""
    config.batch_size = 2048
    config.epochs = 125
    config.sandwich.members, config.sandwich.num_random = "slices", 4
    config.sandwich.label_smoothing = 0.1
    config.teacher.source = "phase:p0_full"

    config.optimizer.learning_rate = 0.24
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.weight_decay = 3e-5
    config.optimizer.clip_norm = 0.0


def shrink(config: ConfigDict) -> None:
    """The schedule of the two mobile families."""
    train_as_once_for_all(config)
    config.phases = ConfigDict(dict(
        p0_full=phase(185, 2.6, 5.0, 1, kernel_size=1, depth=1, expand_ratio=1),
        p1_kernel=phase(125, 0.96, 5.0, 1, depth=1, expand_ratio=1),
        p2_depth=phase(25, 0.08, 0.0, 2, depth=2, expand_ratio=1),
        p3_depth=phase(125, 0.24, 5.0, 2, expand_ratio=1),
        p4_expand=phase(25, 0.08, 0.0, 4, expand_ratio=2),
    ))  # fmt: skip


def get_config() -> ConfigDict:
    config = ofa_mbv3.get_config()
    shrink(config)
    return config
