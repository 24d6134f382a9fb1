"""What `config.deterministic` sets in the environment, and what it refuses there."""

import subprocess
import sys

import pytest
from paths import ROOT

from bignas_jax.errors import ConfigError
from bignas_jax.programs.deterministic import check, prepare

FLAG = "--xla_gpu_deterministic_ops=true"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"XLA_FLAGS": FLAG, "NCCL_ALGO": "^NVLS,NVLSTree"}),
        ({"XLA_FLAGS": " --a=b "}, {"XLA_FLAGS": f"--a=b  {FLAG}", "NCCL_ALGO": "^NVLS,NVLSTree"}),
        ({"XLA_FLAGS": FLAG, "NCCL_ALGO": "Ring,Tree"}, {"XLA_FLAGS": FLAG, "NCCL_ALGO": "Ring,Tree"}),
        (
            {"XLA_FLAGS": "--xla_gpu_deterministic_ops", "NCCL_ALGO": "^NVLSTree,NVLS,PAT"},
            {"XLA_FLAGS": "--xla_gpu_deterministic_ops", "NCCL_ALGO": "^NVLSTree,NVLS,PAT"},
        ),
        (
            {"XLA_FLAGS": "--xla_gpu_autotune_level=0 --xla_gpu_exclude_nondeterministic_ops=1"},
            {
                "XLA_FLAGS": f"--xla_gpu_autotune_level=0 --xla_gpu_exclude_nondeterministic_ops=1 {FLAG}",
                "NCCL_ALGO": "^NVLS,NVLSTree",
            },
        ),
    ],
)
def test_the_environment_is_completed(before, after, monkeypatch):
    monkeypatch.delitem(sys.modules, "jax._src.xla_bridge", raising=False)
    environment = dict(before)
    prepare(environment)
    assert environment == after
    check(environment, "gpu")
    prepare(environment)  # a second call finds what it needs
    assert environment == after


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"XLA_FLAGS": "--xla_gpu_deterministic_ops=false"}, "--xla_gpu_deterministic_ops=false"),
        ({"XLA_FLAGS": f"{FLAG} --xla_gpu_deterministic_ops=0"}, "--xla_gpu_deterministic_ops=0"),
        ({"XLA_FLAGS": "--xla_gpu_exclude_nondeterministic_ops=False"}, "--xla_gpu_exclude_nondeterministic_ops=false"),
        ({"XLA_FLAGS": "--xla_gpu_autotune_level=4"}, "--xla_gpu_autotune_level=4"),
        ({"XLA_FLAGS": "flags.txt"}, "the name of a file, flags.txt,"),
        ({"NCCL_ALGO": "NVLS"}, "found NVLS in $NCCL_ALGO"),
        ({"NCCL_ALGO": "allreduce:tree,nvls;broadcast:ring"}, "found allreduce:tree,nvls;broadcast:ring in $NCCL_ALGO"),
        ({"NCCL_ALGO": "^Ring"}, "found ^Ring in $NCCL_ALGO"),
        ({"NCCL_ALGO": "^NVLS"}, "found ^NVLS in $NCCL_ALGO"),
    ],
)
def test_what_asks_for_the_contrary_is_refused_by_name(environment, named, monkeypatch):
    monkeypatch.delitem(sys.modules, "jax._src.xla_bridge", raising=False)
    with pytest.raises(ConfigError) as error:
        prepare(environment)
    assert named in str(error.value) and str(error.value).startswith("config.deterministic: found ")
    assert "\n" not in str(error.value)


def test_jax_that_has_started_without_the_flag_is_refused():
    probe = "import jax; jax.devices(); from bignas_jax.programs.deterministic import prepare; import os; "
    for flag, ends in (("", 1), (FLAG, 0)):
        code = f"{probe}os.environ['XLA_FLAGS'] = {flag!r}; prepare(os.environ)"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == ends, done.stderr
        assert ("JAX started without" in done.stderr) == bool(ends)


@pytest.mark.parametrize("flags", ["", "--xla_gpu_deterministic_ops=false", "--xla_gpu_autotune_level=0"])
def test_gpus_that_were_started_without_the_flag_are_refused(flags):
    with pytest.raises(ConfigError, match="expected|set it before JAX starts"):
        check({"XLA_FLAGS": flags}, "gpu")
    check({"XLA_FLAGS": flags}, "cpu")  # deterministic as it is
