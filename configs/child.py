"""One child on CIFAR-10: fine-tuned from its slice of configs/cifar10.py's supernet, or trained from scratch.

    python train.py --config configs/child.py --config.arch=FILE
    python train.py --config configs/child.py --config.arch=FILE --workdir exp/scratch \\
        --config.init_checkpoint=none --config.optimizer.learning_rate=0.1
    python eval.py --workdir exp/child

FILE is an architecture's JSON, as a search writes it; JSON itself, max and min do, too. The child's space is that of
the run in config.init_from. Another data set: set config.data.* and config.model.num_classes; where the classes are
others, the child gets a new classifier.
Result for 3.83 M multiply-adds: 68.50% top-1 on the test images before, 71.30% after, 55.83% from scratch, at a weight
decay of 1e-4 and an older recipe's supernet (docs/child.md).
Time: 5 to 11 minutes on 2 CPU cores that other work shared.
"""

from ml_collections import ConfigDict

from configs import cifar10


def get_config() -> ConfigDict:
    config = cifar10.get_config()
    config.epochs = 2

    config.arch = "architecture.json"
    config.init_from = "exp/cifar10"
    config.init_checkpoint = "newest"

    config.optimizer.learning_rate = 0.02
    config.optimizer.warmup_epochs = 0.1
    return config
