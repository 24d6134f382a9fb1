"""Loads what the scripts import once, and forks a process for each command that forks.py sends.

Nothing of JAX has started when it forks: there are no threads of Python, no backend and no devices. The process that is
forked runs the command as Python would and ends as Python does. It is a child of whoever asked.
"""

import gc
import importlib
import json
import os
import pathlib
import runpy
import socket
import sys
import warnings

# The slow imports of the scripts, and the modules of the package that bring them.
LOADED = (
    "torch.utils.data",
    "orbax.checkpoint",
    "bignas_jax.api",
    "bignas_jax.cli.evaluate",
    "bignas_jax.cli.export",
    "bignas_jax.cli.searching",
    "bignas_jax.cli.train",
    "bignas_jax.runs.assess",
    "bignas_jax.search.run",
    "bignas_jax.training.loop",
)
CACHE = "JAX_COMPILATION_CACHE_DIR"  # the one variable that JAX reads when it is imported and that tests change


def serve(requests: socket.socket) -> dict:
    """Forks a process for each request, until nobody asks any more. Returns in a forked process, with its request."""
    while True:
        message, files, _, _ = socket.recv_fds(requests, 1 << 22, 3)
        if not message:
            os._exit(0)
        answer, ask = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that others would have threads
            middle = os.fork()
            if not middle:
                child = os.fork()
                if child:
                    os.write(ask, str(child).encode())
                    os._exit(0)
                requests.close()
                os.close(answer)
                os.close(ask)
                for number, file in enumerate(files):
                    os.dup2(file, number)
                    os.close(file)
                return json.loads(message)
        os.waitpid(middle, 0)  # the child now belongs to the nearest process that takes orphans: the one that asked
        requests.send(os.read(answer, 100))
        for file in (answer, ask, *files):
            os.close(file)


def run(command: list[str], folder: str, environment: dict[str, str]) -> None:
    """Runs the arguments of a Python as that would: a script, or `-c CODE`, or `-m MODULE`."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.modules["jax"].config.update("jax_compilation_cache_dir", environment.get(CACHE))
    what, *arguments = command
    if what == "-c":
        code, *arguments = arguments
        sys.argv, sys.path[0] = ["-c", *arguments], ""
        exec(compile(code, "<string>", "exec"), sys.modules["__main__"].__dict__ | {"__name__": "__main__"})
    elif what == "-m":
        module, *arguments = arguments
        sys.argv, sys.path[0] = [module, *arguments], folder
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [what, *arguments], str(pathlib.Path(what).resolve().parent)
        runpy.run_path(what, run_name="__main__")


if __name__ == "__main__":
    sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)  # of the package, until a command has its own
    for name in LOADED:
        importlib.import_module(name)
    gc.freeze()
    run(**serve(socket.socket(fileno=int(sys.argv[1]))))
