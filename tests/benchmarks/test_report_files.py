"""Files of results: what a later day's run of the same machine keeps."""

import json
import sys

import pytest
from paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import report  # noqa: E402

ABOUT = {"processor": "cpu Tiny x 2", "versions": {"jax": "1"}, "device": "cpu", "devices": 1}


@pytest.fixture
def add(tmp_path, monkeypatch):
    """A function that adds a run on a day, with these versions, and gives the files with their runs."""

    def add(name: str, day: str, jax: str = "1", *options: str) -> dict[str, list[dict]]:
        folder, results = tmp_path / f"{name}-{day}", tmp_path / "results"
        folder.mkdir()
        (folder / f"{name}.json").write_text(json.dumps({"benchmark": name, "quick": False, "results": []}))
        (folder / f"{name}.run").write_text(f"0 5 python {name}.py")
        about = ABOUT | {"date": day, "commit": f"c{day}", "versions": {"jax": jax}}
        monkeypatch.setattr(report, "machine", lambda: about)
        monkeypatch.setattr(sys, "argv", ["report.py", str(folder), "--results", str(results), *options])
        report.main()
        return {path.name: json.loads(path.read_text())["runs"] for path in sorted(results.glob("*.json"))}

    return add


def test_a_later_day_keeps_the_runs_before_with_their_commit_and_date(add):
    add("first", "2026-01-01", "1", "--add")
    ((name, runs),) = add("second", "2026-01-02", "1", "--add").items()
    assert name == "cpu-tiny-x-2-2026-01-02.json" and [run["name"] for run in runs] == ["first", "second"]
    assert (runs[0]["commit"], runs[0]["date"]) == ("c2026-01-01", "2026-01-01") and "commit" not in runs[1]
    ((name, runs),) = add("third", "2026-01-03", "1", "--add").items()
    assert [run.get("commit") for run in runs] == ["c2026-01-01", "c2026-01-02", None]
    ((_, runs),) = add("first", "2026-01-04", "1", "--add").items()  # run anew
    assert [run["name"] for run in runs] == ["second", "third", "first"]


def test_a_failure_takes_nothing_away(add, tmp_path):
    add("first", "2026-01-01", "1", "--add")
    path = tmp_path / "results" / "cpu-tiny-x-2-2026-01-01.json"
    saved = json.loads(path.read_text())
    saved["runs"][0]["results"] = [{"name": "speed", "value": 2.0}]
    path.write_text(json.dumps(saved))
    ((_, runs),) = add("first", "2026-01-02", "1", "--add").items()  # which gives no figures
    assert [(run["date"], run["results"][0]["value"]) for run in runs] == [("2026-01-01", 2.0)]


def test_a_later_days_file_is_left_alone_by_a_clock_that_is_behind(add):
    add("first", "2026-01-05", "1", "--add")
    assert len(add("second", "2026-01-02", "1", "--add")) == 2


def test_runs_of_other_versions_and_without_add_are_left_alone(add):
    add("first", "2026-01-01", "1", "--add")
    found = add("second", "2026-01-02", "2", "--add")
    assert [len(runs) for runs in found.values()] == [1, 1]
    found = add("third", "2026-01-03", "1")
    assert [len(runs) for runs in found.values()] == [1, 1, 1]
