"""Random numbers as pure functions of (key, index): the same on any worker or host, and after any restart.

A key is hashed from a few integers (seed, epoch, purpose). The number at an index is SplitMix64 with this key,
evaluated at the index (Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number generators", figure 14). So a
few array operations draw a whole batch, and no generator is advanced.
"""

import numpy as np

ORDER, AUGMENT, REPLACE, HOLDOUT = range(4)  # purposes: the same index gets different numbers for each

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def key(*words: int) -> np.uint64:
    """A 64-bit key from integers of any size and sign."""
    return np.random.SeedSequence([word & _MASK for word in words]).generate_state(1, np.uint64)[0]


def bits(key: np.uint64, index) -> np.ndarray:
    """64 random bits for every entry of `index` (any shape): uint64 of the same shape."""
    z = key + (np.asarray(index).astype(np.uint64) + np.uint64(1)) * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniforms(key: np.uint64, index, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) for each entry of `index` [B]: float64 [B, count]."""
    own_key = bits(key, index)[:, None]
    return (bits(own_key, np.arange(count)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(key: np.uint64, n: int) -> np.ndarray:
    """A permutation of range(n), int64 [n]: indices in the order of their random bits.

    This permutation never changes. The stream of `numpy.random.Generator.permutation` may change between NumPy
    versions.
    """
    return np.argsort(bits(key, np.arange(n)), kind="stable")
