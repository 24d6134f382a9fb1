"""Images from disk to device batches. torch and torchvision read the images; JAX gets NumPy batches.

dataset = open_dataset(options.data, seed=options.seed)
loader = Loader(dataset, "train", batch_size=256, train=True)
for batch in prefetch(loader.epochs(start_step=0), mesh):
    ...
"""

from bignas_jax.data.dataset import Dataset, open_dataset, open_images
from bignas_jax.data.loader import Batches, Loader
from bignas_jax.data.prefetch import Prefetch, prefetch
from bignas_jax.errors import DataError

__all__ = ["Batches", "DataError", "Dataset", "Loader", "Prefetch", "open_dataset", "open_images", "prefetch"]
