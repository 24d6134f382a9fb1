"""Writes a page for each module of the package, from its docstrings, into a folder.

    python docs/build_pages.py build/docs
"""

import pathlib
import pkgutil
import sys

import pdoc

import bignas_jax


def build(folder: pathlib.Path) -> None:
    for name in bignas_jax.__all__:  # names that are imported at first use have no place in the page otherwise
        setattr(bignas_jax, name, getattr(bignas_jax, name))
    modules = [module.name for module in pkgutil.walk_packages(bignas_jax.__path__, "bignas_jax.")]
    pdoc.render.configure(docformat="google")
    pdoc.pdoc("bignas_jax", *(name for name in modules if not name.endswith("__main__")), output_directory=folder)
    print(folder / "index.html")


if __name__ == "__main__":
    build(pathlib.Path(sys.argv[1]))
