"""The comparison of runs: what is compared, and that the page is whole, escaped and fetches nothing."""

import copy
import json
import re
from html.parser import HTMLParser

import pytest
import report_cases

from bignas_jax.cli.reporting import main, names_of
from bignas_jax.errors import ReportError
from bignas_jax.search.report import comparison

HOSTILE = "</title><script>window.hacked=1</script><img src=x onerror=window.hacked=2>&amp;"


@pytest.fixture(scope="module")
def results():
    return {"first": report_cases.make("digits", 60), "second": report_cases.make("digits", 60, seed=5)}


class Page(HTMLParser):
    """The tags, the texts and the cells of a page."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.rows, self.words, self.cell = [], [], [], False
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])

        self.cell = tag in ("td", "th")

    def handle_endtag(self, tag):
        self.cell = False

    def handle_data(self, data):
        self.words.append(data)
        if self.cell:
            self.rows[-1].append(data)

    def curves(self):
        return [attrs for tag, attrs in self.tags if tag == "path" and attrs.get("class") == "curve"]


def test_each_run_has_its_front_in_a_look_of_its_own(results):
    page = Page(comparison.page(results))
    plot, legend = page.curves()[:2], page.curves()[2:]
    assert [curve["style"] for curve in plot] == [curve["style"] for curve in legend]
    assert len({curve["style"] for curve in plot}) == 2
    circles = [attrs for tag, attrs in page.tags if tag == "circle"]
    for result, curve in zip(results.values(), plot, strict=True):
        marks = [c for c in circles if c["style"] == curve["style"]]
        assert len(marks) == len(result["front"]) == curve["d"].count("V") + 1
        xs, ys = ([float(c[axis]) for c in marks] for axis in ("cx", "cy"))
        assert xs == sorted(xs) and ys == sorted(ys, reverse=True)
        assert all(comparison.LEFT <= x <= comparison.WIDTH and 0 <= y <= comparison.HEIGHT for x, y in
                   zip(xs, ys, strict=True))  # fmt: skip
    many = {f"run {n}": results["first"] for n in range(comparison.MOST)}
    assert len({curve["style"] for curve in Page(comparison.page(many)).curves()}) == comparison.MOST


def test_the_table_at_equal_cost_is_that_of_the_evaluations(results):
    """Against the evaluations themselves, one by one."""
    rows = {row[0]: row[1:] for row in Page(comparison.page(results)).rows[:3]}
    limits = [float(cell.replace(",", "").split()[0]) * 1e6 for cell in rows["run"]]
    for name, result in results.items():
        for limit, cell in zip(limits, rows[name], strict=True):
            within = [r["top1"] for r in result["evaluations"] if r["complete"] and r["macs"] <= limit * 1.001]
            assert cell == f"{100 * max(within):.2f}%"


def test_the_headline_names_the_one_that_is_ahead(results):
    better = copy.deepcopy(results["first"])
    for row in better["evaluations"]:
        row["top1"] = min(1.0, row["top1"] + 0.05)
    words = "".join(Page(comparison.page({"plain": results["first"], "better": better})).words)
    assert "better is ahead of all others at 6 of the 6 costs (multiply-adds) compared." in words
    same = "".join(Page(comparison.page({"a": better, "b": better})).words)
    assert "No run is ahead" in same


def test_runs_of_other_tasks_are_said_to_be_that(results):
    other = copy.deepcopy(results["second"])
    other["run"]["images"]["holdout"] += 1
    other["config"]["data"]["source"] = "folder"
    words = "".join(Page(comparison.page({"a": results["first"], "b": other})).words)
    assert "differ in images held out, source: their accuracies are not of the same task" in words
    assert "not of the same task" not in comparison.page(results)


def test_no_name_is_markup_and_nothing_is_fetched(results):
    hostile = copy.deepcopy(results["second"])
    hostile["run"]["strategy"] = hostile["final"][0]["name"] = HOSTILE
    content = comparison.page({HOSTILE: hostile, "b": results["first"]})
    page = Page(content)
    assert {tag for tag, _ in page.tags} & {"script", "img", "iframe"} == set()
    assert [a["href"] for _, a in page.tags if "href" in a] == ["data:,"] and "url(" not in content
    assert "default-src 'none'" in content and HOSTILE in "".join(page.words)


def test_another_cost_and_what_cannot_be_compared(results):
    assert "latency (ms)" in comparison.page(results, "latency_ms")
    with pytest.raises(ReportError, match="second: found no evaluation with own, expected .* --cost"):
        comparison.page({"second": results["second"], "first": results["first"]}, "own")
    with pytest.raises(ReportError, match="found 1 runs to compare"):
        comparison.page({"first": results["first"]})


def test_the_command_compares_folders(results, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, result in results.items():
        (tmp_path / name / "search").mkdir(parents=True)
        (tmp_path / name / "search" / "result.json").write_text(json.dumps(result))
    assert main(["report", "first", "second/", "--out", "out/both.html", "--cost", "params"]) == 0
    assert capsys.readouterr().out == "out/both.html\n"
    assert re.search("parameters .K.", (tmp_path / "out" / "both.html").read_text())
    for arguments, words in ((["first", "first/"], "found first twice"), (["first", "none"], "No such file"),
                             (["first", "second", "--cost", "x"], "invalid choice")):  # fmt: skip
        with pytest.raises(SystemExit):
            main(["report", *arguments])
        assert words in capsys.readouterr().err
    assert names_of(["a/x", "b/x", "c"]) == ["a/x", "b/x", "c"]
