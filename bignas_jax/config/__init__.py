"""Configs: the fields and their defaults (`base`, which recipes begin with), the file form, the recipes."""

from bignas_jax.config.fields import base

__all__ = ["base"]
