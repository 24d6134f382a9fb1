"""The report of a search: what the page says as text, its picture, and the command that makes both."""

import copy
import html.parser
import json
import re
import shlex

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from bignas_jax.cli.reporting import main
from bignas_jax.errors import ReportError
from bignas_jax.search.report import page as report
from bignas_jax.search.report import plot


def embedded_in(page):
    """The data of a page as a browser takes it: up to the first end of the script element."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script', page, re.DOTALL)[1])


# ---- the page as text


def test_page_holds_the_result_unchanged(digits, hostile):
    for result in (digits, hostile):
        assert embedded_in(report.page(result))["result"] == result


def test_what_json_cannot_hold_becomes_null(digits):
    result = copy.deepcopy(digits)
    result["evaluations"][3]["loss"] = float("nan")
    result["evaluations"][4]["loss"] = float("inf")
    found = embedded_in(report.page(result))["result"]["evaluations"]
    assert [row["loss"] for row in found[3:5]] == [None, None]
    assert found[5] == digits["evaluations"][5]


class _References(html.parser.HTMLParser):
    """The tags of a page, and what their attributes refer to."""

    def __init__(self):
        super().__init__()
        self.tags, self.found = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data", "poster")]


def test_page_names_no_other_resource(digits, hostile):
    for result in (digits, hostile):
        page = report.page(result)
        seen = _References()
        seen.feed(page)
        assert seen.found == ["data:,"]
        assert seen.tags.count("script") == 2 and "img" not in seen.tags
        assert "url(" not in page and "@import" not in page
        assert """http-equiv="Content-Security-Policy" content="default-src 'none';""" in page


def _luminance(colour):
    channels = np.array(to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _contrast(a, b):
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_text_and_marks_stand_out(theme):
    """WCAG 2.2, 1.4.3 and 1.4.11: text 4.5 to 1, graphical objects 3 to 1."""
    roots = re.findall(r":root \{(.*?)\}", report.TEMPLATE.read_text(), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", roots[theme]))
    assert len(colours) > 15
    for ground in ("page", "card"):
        for text in ("ink", "muted", "accent"):
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        marks = [name for name in colours if re.fullmatch(r"ramp-\w|c\d|edge", name)]
        assert len(marks) == 10
        for mark in marks:
            assert _contrast(colours[mark], colours[ground]) >= 3, (mark, ground)


def _final(*rows):
    names = ("name", "macs", "top1")
    return [{**dict(zip(names, row, strict=True)), "number": n, "params": 1, "latency_ms": row[1] / 1e6,
             "holdout_top1": 0.5, "top5": 1.0, "images": 100} for n, row in enumerate(rows)]


def test_headline_takes_the_cheapest_winner_that_is_as_good(digits):
    final = _final(("a", 2e5, 0.90), ("b", 5e5, 0.794), ("c", 6e5, 0.80), ("MAX", 1e6, 0.80), ("MIN", 1e5, 0.99))
    found = report.headline({**digits, "final": final[1:]})
    assert found == ("50.0% of the biggest network’s multiply-adds keep 99.3% of its top-1 accuracy: b has 79.40% on"
                     " the validation split, the biggest 80.00%.")
    found = report.headline({**digits, "final": final})
    assert found.startswith("20.0% of the biggest network’s multiply-adds give at least its top-1 accuracy: a has")


def test_headline_takes_the_best_winner_where_none_is_as_good(digits):
    final = _final(("a", 2e5, 0.5), ("b", 5e5, 0.6), ("MAX", 1e6, 0.8))
    assert ": b has 60.00% on" in report.headline({**digits, "final": final})
    timed = {**digits, "final": final, "run": {**digits["run"], "cost": "latency_ms"}}
    assert report.headline(timed).startswith("50.0% of the biggest network’s latency keeps 75.0% of its")


def test_headline_without_a_comparison_names_the_best_evaluation(digits, small):
    best = max(row["top1"] for row in small["evaluations"])
    assert f"The best of 2 architectures has {100 * best:.2f}% top-1 on the held-out" in report.headline(small)
    only_max = {**digits, "final": _final(("MAX", 1e6, 0.8))}
    assert report.headline(only_max).startswith("The best of ")
    assert report.headline({**small, "evaluations": []}).startswith("No architecture")


def test_command_survives_the_shell(digits):
    result = copy.deepcopy(digits)
    result["run"]["workdir"] = "exp/it's $HOME"
    name = result["budgets"][0]["name"]
    assert shlex.split(report.commands(result)[name]) == [
        "python", "eval.py", "--workdir", "exp/it's $HOME",
        "--arch", f"exp/it's $HOME/children/{name}/architecture.json"]


# ---- files


def test_writes_both_files_and_nothing_else(digits, tmp_path):
    assert report.write(digits, tmp_path) == [tmp_path / "report.html", tmp_path / "front.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["front.png", "report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == report.page(digits)


def test_refuses_a_result_that_lacks_a_part_and_keeps_the_old_page(digits, tmp_path):
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(ReportError, match="^found no front, final, expected the result of a search"):
        report.write({k: v for k, v in digits.items() if k not in ("front", "final")}, tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"


def test_command_line_rebuilds_from_the_result(digits, tmp_path, capsys):
    folder = tmp_path / "search"
    folder.mkdir()
    run = {name: value for name, value in digits["run"].items() if name != "workdir"}
    (folder / "result.json").write_text(json.dumps({**digits, "run": run}))
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(folder / "report.html"), str(folder / "front.png")]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert embedded_in(page)["result"]["run"]["workdir"] == str(tmp_path)


@pytest.mark.parametrize(("text", "says"), [
    (None, "result.json: No such file or directory, expected the folder of a run"),
    ("{", "not valid JSON"), ("[]", "found [], expected an object"), ("{}", "run: found nothing, expected an object")])
def test_command_line_refuses_in_one_line(text, says, tmp_path, capsys):
    (tmp_path / "search").mkdir()
    if text is not None:
        (tmp_path / "search" / "result.json").write_text(text)
    with pytest.raises(SystemExit) as end:
        main(["report", str(tmp_path)])
    error = capsys.readouterr().err
    assert end.value.code == 2 and says in error and error.count("\n") == 1


@pytest.mark.parametrize("case", ["digits", "small", "hostile"])
def test_png_has_its_size_and_a_mark_for_each_resolution(case, tmp_path, request):
    result = request.getfixturevalue(case)
    plot.write(result, tmp_path / "front.png")
    pixels = np.asarray(Image.open(tmp_path / "front.png").convert("RGB"), np.float64)
    assert pixels.shape == (1000, 1600, 3)
    assert (pixels[:3] == 255).all() and (pixels[:, :3] == 255).all()
    sides = [row["architecture"]["resolution"] for row in result["evaluations"] if row["complete"]]
    for side, colour in plot.colours(sides).items():
        near = np.abs(pixels - 255 * np.array(to_rgb(colour))).sum(-1) < 90
        assert near.sum() > 20 * min(sides.count(side), 5), side


def test_png_colours_grow_lighter_with_the_resolution():
    lightness = [_luminance(colour) for colour in plot.colours([320, 192, 224, 256, 288]).values()]
    assert lightness == sorted(lightness) and min(np.diff(lightness)) > 0.01
