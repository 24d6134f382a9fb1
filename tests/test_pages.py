"""The pages of the docstrings can be made."""

import subprocess
import sys

from paths import ROOT
from run_lab import environment


def test_every_module_gets_a_page(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "build_pages.py", tmp_path], cwd=ROOT, env=environment(tmp_path),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and "does not resolve" not in done.stderr, done.stderr[-3000:]
    pages = {path.relative_to(tmp_path).with_suffix("") for path in tmp_path.rglob("*.html")}
    for path in (ROOT / "bignas_jax").rglob("*.py"):
        module = path.relative_to(ROOT).with_suffix("")
        assert path.name.startswith("__") or "recipes" in module.parts or module in pages, module
    assert "open_run" in (tmp_path / "bignas_jax.html").read_text()
    assert "folder of a run" in (tmp_path / "bignas_jax/api/run.html").read_text()
