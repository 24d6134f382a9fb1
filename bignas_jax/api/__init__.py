"""A trained run in Python: its children, their predictions, its searches.

    run = bignas_jax.open_run("exp/digits")
    child = run.child("max")
    child.predict(["photo.jpg"])

`docs/api.md` shows each of them at work.
"""

from bignas_jax.api.child import Child
from bignas_jax.api.found import Found
from bignas_jax.api.prediction import Prediction
from bignas_jax.api.run import Run, open_run

__all__ = ["Child", "Found", "Prediction", "Run", "open_run"]
