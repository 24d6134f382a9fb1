"""The README's tables are the ones that the committed results give."""

import json
import subprocess
import sys

from paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import table  # noqa: E402

PARTS = ("measured", "counted", "reliability")


def page(root):
    """Pages with something old between their markers, and the README's path."""
    text = "a\n" + "".join(f"<!-- {part}: begin -->\nold\n<!-- {part}: end -->\nb\n" for part in PARTS)
    (root / "docs").mkdir(exist_ok=True)
    (root / "README.md").write_text(text)
    for name, part in (("performance", "measured"), ("training", "method")):
        (root / "docs" / f"{name}.md").write_text(f"<!-- {part}: begin -->\nold\n<!-- {part}: end -->\n")
    return root / "README.md"


def run(*arguments):
    command = [sys.executable, "benchmarks/table.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_readme_is_up_to_date():
    done = run("--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_newest_file_of_a_device_is_shown_with_what_falls_short(tmp_path):
    def file(date, value):
        row = {"name": "speed", "value": value, "unit": "x", "target": 1.3, "better": "higher"}
        aside = {"name": "memory", "value": 7, "unit": "GB", "target": None, "shown": True}
        runs = [{"name": "step", "command": "python step.py", "status": "done", "seconds": 1, "results": [row, aside]},
                {"name": "bandwidth", "command": "python b.py", "status": "done", "seconds": 1, "results": [row]},
                {"name": "loader", "command": "python loader.py", "status": "timed out", "seconds": 9}]
        about = {"device": "card", "date": date, "commit": "0123456789abcdef with changes", "versions": {"jax": "1"}}
        about["runs"] = runs
        (tmp_path / f"card-{date}.json").write_text(json.dumps(about))

    file("2026-01-01", 5.0)
    file("2026-02-01", 1.2)
    readme = page(tmp_path)
    arguments = ("--results", tmp_path, "--root", tmp_path)
    assert run("--check", *arguments).returncode == 1
    assert run(*arguments).returncode == 0 and run("--check", *arguments).returncode == 0
    text = readme.read_text()
    assert "1.2 x (short) | at least 1.3 | `python step.py`" in text and "timed out" in text
    assert "card, 2026-02-01, jax 1, commit 0123456789ab with changes:" in text
    assert "5 x" not in text and text.startswith("a\n") and "\nb\n" in text and "old" not in text
    whole = (tmp_path / "docs" / "performance.md").read_text()
    assert "7 GB" in whole and "python b.py" in whole and "7 GB" not in text and "python b.py" not in text
    readme.write_text("no markers")
    assert "once each" in run(*arguments).stderr


def test_how_good_networks_are_stands_apart(tmp_path):
    rows = [{"name": "MAX: alone", "value": 79.24, "unit": "%", "shown": True}, {"name": "aside", "value": 1.0}]
    runs = [{"name": "claim", "command": "python claim.py", "status": "done", "seconds": 1, "results": rows}]
    about = {"device": "cpu", "date": "2026-02-01", "commit": "0123456789abcdef", "versions": {"jax": "1"}}
    about["runs"] = runs
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "cpu.json").write_text(json.dumps(about))
    readme = page(tmp_path)
    assert run("--results", tmp_path, "--root", tmp_path).returncode == 0
    text = (tmp_path / "docs" / "training.md").read_text()
    assert "| MAX: alone | 79.2 % |  | `python claim.py` |" in text and "aside" not in text and "old" not in text
    assert "MAX" not in readme.read_text()


def test_runs_of_an_earlier_day_say_so(tmp_path):
    rows = [{"name": "tau", "value": 0.9, "unit": "", "shown": True}]
    runs = [{"name": "claim", "command": "python claim.py", "status": "done", "seconds": 1, "results": rows,
             "commit": "0" * 40, "date": "2026-01-01"},
            {"name": "relatives", "command": "python relatives.py", "status": "done", "seconds": 1, "results": rows}]
    lines = table.rows({"date": "2026-01-02", "commit": "1" * 40, "runs": runs}, brief=False)
    assert lines[0].endswith("| `python claim.py`, 2026-01-01, commit 000000000000 |")
    assert lines[1].endswith("| `python relatives.py` |")


def test_faults_are_shown_with_what_was_lost(tmp_path):
    faults = [{"fault": "a kill", "tried": 1050, "lost": 2}, {"fault": "a cut", "tried": 7, "lost": 0}]
    runs = [{"name": "crash", "command": "python crash.py", "status": "done", "seconds": 9, "faults": faults},
            {"name": "soak", "command": "python soak.py", "status": "failed", "seconds": 9},
            {"name": "older", "command": "python older.py", "status": "done", "seconds": 9,
             "commit": "fedcba9876543210", "faults": [{"fault": "an old one", "tried": 1, "lost": 0}]}]  # fmt: skip
    about = {"device": "cpu", "processor": "cpu X x 2", "date": "2026-02-01", "commit": "0123456789abcdef"}
    about |= {"runs": runs, "versions": {"jax": "1", "torch": "2"}}
    (tmp_path / "reliability").mkdir()
    (tmp_path / "reliability" / "cpu.json").write_text(json.dumps(about))
    readme = page(tmp_path)
    assert run("--results", tmp_path, "--root", tmp_path).returncode == 0
    text = readme.read_text()
    assert "cpu X x 2, 2026-02-01, jax 1, commit 0123456789ab:" in text and text.endswith("b\n")
    assert "| a kill | 1,050 | 1,048 | 2 | `python crash.py` |\n| a cut | 7 | 7 | 0 |  |\n" in text
    assert "| an old one | 1 | 1 | 0 | `python older.py`, commit fedcba987654 |" in text
    assert "| soak: failed | | | | `python soak.py` |" in text


def test_what_is_counted_stands_by_release_beside_its_aim(tmp_path):
    def file(version, step, kernels):
        about = {"space": "bignas", "jax": version, "steps": 200, "ratios": {"step": step}}
        about["programs"] = {"update": {"kernels": kernels}}
        (tmp_path / "gpu" / f"counted-bignas-{version}.json").write_text(json.dumps(about))
        about |= {"ratios": {"candidate, score: mean over its own slice": 1.0}, "programs": {}, "commit": 40 * "a"}
        (tmp_path / "gpu" / f"counted-bignas-search-{version}.json").write_text(json.dumps(about))

    (tmp_path / "gpu").mkdir()
    file("0.9.1", 0.9, 1145)
    file("0.12.0.1", 0.68, 39)
    readme = page(tmp_path)
    assert run("--results", tmp_path, "--root", tmp_path).returncode == 0
    text = readme.read_text()
    assert "| figure | JAX 0.12.0.1 | JAX 0.9.1 | target | command |" in text
    assert "| bignas, step: bytes over PyTorch eager's | 0.68 | 0.90 (short) | at most 0.7 | `make gpu-programs" in text
    assert "`make gpu-programs GPU_ARGS='--space bignas'`, an earlier commit, commit aaaaaaaaaaaa |" in text
    assert "| bignas, update: kernels | 39 | 1,145 (short) | at most 60 |" in text
    assert "| bignas, candidate, score: mean over its own slice: bytes | 1.00 | 1.00 | at most 1.1 |" in text
