"""The names that a config can choose, such as those of optimizers. All other code uses these enumerations."""

import enum


class Crops(enum.StrEnum):
    """Ways to crop a training image."""

    RESIZED = "resized"
    PADDED = "padded"
    NONE = "none"


class Policies(enum.StrEnum):
    """Policies that change the colours and shapes of training images."""

    NONE = "none"
    IMAGENET = "imagenet"
    CIFAR10 = "cifar10"
    SVHN = "svhn"
    RAND = "rand"


class OnCorrupt(enum.StrEnum):
    """Ways to handle an image that cannot be decoded."""

    ERROR = "error"
    SKIP = "skip"


class OnDamage(enum.StrEnum):
    """Ways to handle a damaged newest checkpoint."""

    FALL_BACK = "fall_back"
    REFUSE = "refuse"


class OnCollapse(enum.StrEnum):
    """Ways to handle a collapse: the losses of all members jump to the loss of guessing, and stay there."""

    TELL = "tell"
    STOP = "stop"


class Optimizers(enum.StrEnum):
    """Rules by which a step changes the weights."""

    SGD = "sgd"
    RMSPROP = "rmsprop"
    ADAMW = "adamw"


class Schedules(enum.StrEnum):
    """Ways in which the learning rate falls."""

    EXPONENTIAL = "exponential"
    COSINE = "cosine"


class Strategies(enum.StrEnum):
    """Ways to choose the architectures that a search scores."""

    COARSE_TO_FINE = "coarse_to_fine"
    EVOLUTION = "evolution"
    PARETO = "pareto"
    RANDOM = "random"
    AGEING_EVOLUTION = "ageing_evolution"
    ASNG = "asng"


class MemberSamplers(enum.StrEnum):
    """Rules by which the members of a step are chosen."""

    SANDWICH = "sandwich"
    BEST_UP = "best_up"
    WORST_UP = "worst_up"
    SINGLE = "single"
    SLICES = "slices"


class Losses(enum.StrEnum):
    """Losses of the members of a step."""

    SOFT_CROSS_ENTROPY = "soft_cross_entropy"
    LABELS = "labels"
    TRUSTED_TEACHER = "trusted_teacher"
    ALPHA_DIVERGENCE = "alpha_divergence"


class Regularised(enum.StrEnum):
    """The members of a sandwich that dropout and drop-connect act on."""

    BIGGEST = "biggest"
    ALL = "all"


class Costs(enum.StrEnum):
    """Kinds of cost. A search can limit each of them, and draws its front over one to three of them."""

    MACS = "macs"
    PARAMS = "params"
    LATENCY_MS = "latency_ms"
    OWN = "own"
