"""The report's page in Chromium: what is drawn, what a click, a key and a narrow window do."""

import copy
import itertools
import json
import re

import chromium
import numpy as np
import pytest
import report_cases
from chromium import in_browser
from report_cases import HOSTILE
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By

from bignas_jax.errors import FileError
from bignas_jax.search.report import form
from bignas_jax.search.report import page as report


@pytest.fixture(scope="module")
def browser():
    with chromium.browser() as driver:
        yield driver


@pytest.fixture
def show(browser, tmp_path):
    """Opens the page of a result at a width; afterwards no error may be in the console and nothing fetched."""
    path = tmp_path / "report.html"

    def opened(result, width=1280, dark=False):
        path.write_text(report.page(result), encoding="utf-8")
        chromium.open_page(browser, path, width, dark)
        return browser

    yield opened
    chromium.check_quiet(browser, path)


def _all(browser, selector):
    return browser.find_elements(By.CSS_SELECTOR, selector)


def _texts(browser, selector):
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)", selector)


def _values(browser, selector, attribute):
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((node) => node.getAttribute(arguments[1]))",
        selector, attribute)


def _rows(browser):
    return [int(number) for number in _values(browser, "#table tbody tr", "data-number")]


def _pinned(browser):
    return int(browser.find_element(By.ID, "panel").get_attribute("data-number"))


@in_browser
def test_draws_a_point_for_each_evaluation(show, digits):
    browser = show(digits)
    for kind, complete in ((".point:not(.partial)", True), (".point.partial", False)):
        numbers = [row["number"] for row in digits["evaluations"] if row["complete"] == complete]
        assert sorted(map(int, _values(browser, f"#cloud {kind}", "data-number"))) == numbers
    fills = browser.execute_script("return [...document.querySelectorAll('.point:not(.partial)')]"
                                   ".map((p) => [p.dataset.number, getComputedStyle(p).fill])")
    by_side = {}
    for number, fill in fills:
        side = digits["evaluations"][int(number)]["architecture"]["resolution"]
        by_side.setdefault(side, set()).add(fill)
    assert sorted(by_side) == digits["space"]["resolution"]
    assert all(len(found) == 1 for found in by_side.values())
    assert len(set().union(*by_side.values())) == len(by_side)
    winners = {str(budget["winner"]) for budget in digits["budgets"]}
    assert set(_values(browser, "#cloud .winner", "data-winner")) == winners
    assert _texts(browser, "#cloud [data-extreme]") == ["MAX", "MIN"]
    assert len(_all(browser, "#cloud .limit")) == len(digits["budgets"])


@in_browser
def test_points_and_front_lie_where_their_values_say(show, digits):
    """Order of costs and accuracies is order of pixels, and the front is never below a complete point."""
    browser = show(digits)
    places = browser.execute_script("return [...document.querySelectorAll('.point:not(.partial)')].map((p) =>"
                                    " [p.dataset.number, p.getAttribute('cx'), p.getAttribute('cy')].map(Number))")
    rows = [(digits["evaluations"][int(n)], x, y) for n, x, y in places]
    by_cost = [x for _, x, _ in sorted(rows, key=lambda row: row[0]["macs"])]
    assert by_cost == sorted(by_cost) and by_cost[-1] - by_cost[0] > 300
    inside = sorted((row for row in rows if row[0]["top1"] > 0.95), key=lambda row: row[0]["top1"])
    assert [y for _, _, y in inside] == sorted([y for _, _, y in inside], reverse=True)
    path = browser.find_element(By.CSS_SELECTOR, "#cloud path.front").get_attribute("d")
    corners = [tuple(map(float, pair)) for pair in re.findall(r"[MH]([\d.]+)[ V]([\d.]+)", path)]
    assert len(corners) == len(digits["front"])
    for _, x, y in rows:
        above = min([cy for cx, cy in corners if cx <= x + 0.2], default=y)
        assert above <= y + 0.2


def _isolated(result, browser):
    """The number of the complete evaluation that lies farthest from all others on the screen, and its element."""
    points = _all(browser, "#cloud .point")
    places = np.array([_values(browser, "#cloud .point", name) for name in ("cx", "cy")], np.float64).T
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1) + 1e9 * np.eye(len(places))
    for index in np.argsort(-distances.min(axis=1)):
        number = int(points[index].get_attribute("data-number"))
        if result["evaluations"][number]["complete"]:
            return number, points[index]
    raise AssertionError("no complete evaluation")


def _assert_panel_shows(browser, arch, space):
    table = {cells[0]: cells[1:] for cells in browser.execute_script(
        "return [...document.querySelectorAll('#panel .stages tbody tr')].map((row) =>"
        " [...row.cells].map((cell) => cell.textContent))")}
    drawn = dict(zip(_values(browser, "#panel .stages tbody tr", "data-stage"), browser.execute_script(
        "return [...document.querySelectorAll('#panel .stages tbody tr')].map((row) =>"
        " [row.querySelectorAll('.blocks .on').length, row.querySelectorAll('.blocks i').length])"), strict=True))
    bars = dict(zip(_values(browser, "#panel .strip > span", "data-stage"), browser.execute_script(
        "return [...document.querySelectorAll('#panel .strip > span')].map((s) => s.querySelectorAll('.on').length)"),
        strict=True))
    assert table["stem"][1] == str(arch["width"][0]) and table["head"][1] == str(arch["width"][-1])
    for n, (name, stage) in enumerate(space["stages"].items()):
        def words(entry):
            return " ".join(map(str, entry)) if isinstance(entry, list) and len(set(entry)) > 1 else str(
                entry[0] if isinstance(entry, list) else entry)

        assert table[name] == [str(arch["depth"][n]), str(arch["width"][n + 1]), words(arch["kernel_size"][n]),
                               words(arch["expand_ratio"][n]), str(stage["stride"]), "yes" if stage["se"] else "no"]
        assert drawn[name] == [arch["depth"][n], stage["depth"][-1]]
        assert bars[name] == arch["depth"][n]
    assert json.loads(_texts(browser, "#panel pre")[0]) == arch


@in_browser
def test_a_click_pins_an_architecture_and_draws_its_stages(show, digits):
    browser = show(digits)
    number, point = _isolated(digits, browser)
    before = _pinned(browser)
    assert before != number
    ActionChains(browser).move_to_element(point).perform()
    tip = _texts(browser, "#cloud .tip")[0]
    assert f"Architecture {number}" in tip
    assert " ".join(map(str, digits["evaluations"][number]["architecture"]["width"])) in tip
    assert _pinned(browser) == before
    ActionChains(browser).click(point).perform()
    assert _pinned(browser) == number
    _assert_panel_shows(browser, digits["evaluations"][number]["architecture"], digits["space"])
    ring = browser.find_element(By.CSS_SELECTOR, ".ring:not(.hover)")
    for name in ("cx", "cy"):
        assert float(ring.get_attribute(name)) == pytest.approx(float(point.get_attribute(name)), abs=0.06)
    assert browser.current_url.endswith(f"#architecture-{number}")
    browser.refresh()
    assert _pinned(browser) == number


@in_browser
def test_entries_for_each_block_are_drawn_one_by_one(show, digits):
    result = copy.deepcopy(digits)
    row = next(e for e in result["evaluations"] if e["architecture"]["depth"][1] == 2 and e["complete"])
    row["architecture"]["kernel_size"][1] = [3, 5]
    row["architecture"]["expand_ratio"][1] = [3, 2]
    browser = show(result)
    browser.execute_script("location.hash = arguments[0]", f"#architecture-{row['number']}")
    browser.execute_async_script("setTimeout(arguments[0], 50)")
    assert _pinned(browser) == row["number"]
    _assert_panel_shows(browser, row["architecture"], result["space"])
    shades = _values(browser, "#panel .strip [data-stage=mb2] .on", "style")
    assert len({style.split("--fill:")[1] for style in shades}) == 2


@in_browser
def test_keys_walk_along_the_front_and_pin(show, digits):
    browser = show(digits)
    cloud = browser.find_element(By.CSS_SELECTOR, "#cloud svg")
    cloud.send_keys(Keys.END, Keys.ENTER)
    assert _pinned(browser) == digits["front"][-1]
    cloud.send_keys(Keys.ARROW_LEFT, Keys.ENTER)
    assert _pinned(browser) == digits["front"][-2]
    assert f"Architecture {digits['front'][-2]}" in _texts(browser, "#status")[0]
    by_cost = sorted(digits["evaluations"], key=lambda e: (e["macs"], e["top1"]))
    at = [e["number"] for e in by_cost].index(digits["front"][-2])
    cloud.send_keys(Keys.ARROW_UP, Keys.ENTER)
    assert _pinned(browser) == by_cost[at + 1]["number"]


@in_browser
def test_table_sorts_both_ways_by_every_column(show, digits):
    result = copy.deepcopy(digits)
    for row in result["evaluations"][::7]:
        row["latency_ms"] = None
    browser = show(result)
    rows = {row["number"]: row for row in result["evaluations"]}
    values = {
        "Number": lambda r: r["number"], "Top-1": lambda r: r["top1"], "Top-5": lambda r: r["top5"],
        "Loss": lambda r: r["loss"], "Multiply-adds": lambda r: r["macs"], "Parameters": lambda r: r["params"],
        "Latency": lambda r: r["latency_ms"], "Resolution": lambda r: r["architecture"]["resolution"],
        "Blocks": lambda r: sum(r["architecture"]["depth"]), "Images": lambda r: r["images"],
        "Seconds": lambda r: r["seconds"], "Phase": lambda r: [int(t) if t.isdigit() else t for t in re.split(
            r"(\d+)", r["phase"])],
    }
    assert _texts(browser, "#table th") == list(values)
    assert [rows[n]["top1"] for n in _rows(browser)] == sorted((r["top1"] for r in rows.values()), reverse=True)
    for column, (name, value) in enumerate(values.items()):
        head = _all(browser, "#table th")[column]
        directions = []
        for _ in range(2):
            head.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
            directions.append(head.get_attribute("aria-sort"))
            found = [value(rows[n]) for n in _rows(browser)]
            known = [v for v in found if v is not None]
            assert known == sorted(known, reverse=directions[-1] == "descending"), (name, directions[-1])
            assert found[len(known):] == [None] * (len(rows) - len(known))
        assert sorted(directions) == ["ascending", "descending"]
        assert len(_all(browser, "#table th[aria-sort]")) == 1


@in_browser
def test_table_can_show_the_front_alone_and_pins(show, digits):
    browser = show(digits)
    browser.find_element(By.ID, "front-only").click()
    assert sorted(_rows(browser)) == sorted(digits["front"])
    _all(browser, "#table tbody button")[-1].click()
    assert _pinned(browser) == _rows(browser)[-1]
    browser.find_element(By.ID, "front-only").click()
    browser.find_element(By.ID, "complete-only").click()
    assert sorted(_rows(browser)) == [row["number"] for row in digits["evaluations"] if row["complete"]]


@in_browser
def test_cards_progress_and_measures_show_what_the_result_says(show, digits):
    browser = show(digits)
    cards = _all(browser, ".card")
    assert [card.get_attribute("data-budget") for card in cards] == [b["name"] for b in digits["budgets"]]
    finals = {row["name"]: row for row in digits["final"]}
    for card, budget in zip(cards, digits["budgets"], strict=True):
        winner = digits["evaluations"][budget["winner"]]
        figures = dict(zip(_texts(browser, f"[data-budget='{budget['name']}'] dt"),
                           _texts(browser, f"[data-budget='{budget['name']}'] dd"), strict=True))
        assert float(figures["Validation top-1"][:-1]) == pytest.approx(100 * finals[budget["name"]]["top1"], abs=0.006)
        assert float(figures["Held-out top-1"][:-1]) == pytest.approx(100 * winner["top1"], abs=0.006)
        assert figures["Multiply-adds"] == f"{winner['macs'] / 1e6:.2f}\u00a0M"
        json_text, command = _texts(browser, f"[data-budget='{budget['name']}'] pre")
        assert json.loads(json_text) == winner["architecture"]
        assert command == report.commands(digits)[budget["name"]]
        assert len(card.find_elements(By.CSS_SELECTOR, ".strip .on")) == 2 + sum(winner["architecture"]["depth"])
    assert len(_all(browser, "#progress-chart .best")) == len(digits["budgets"])
    phases = [phase for phase, _ in itertools.groupby(row["phase"] for row in digits["evaluations"])]
    assert _texts(browser, "#progress-chart .phase title") == phases
    assert len(_all(browser, "#predictor-chart circle")) == len(digits["predictor"])
    assert len(_all(browser, "#latency-chart circle")) == len(digits["latency"]["networks"])
    assert "6.0%" in _texts(browser, "#latency-words")[0]
    config = dict(zip(_texts(browser, "#config dt"), _texts(browser, "#config dd"), strict=True))
    assert config["optimizer.learning_rate"] == "0.1" and config["space.stages.mb2.width"] == "[16, 24]"


def _improvements(result, budget):
    """(number of evaluations, seconds) when the best within a limit on multiply-adds got better."""
    best, found = -1.0, []
    for number, row in enumerate(result["evaluations"]):
        if row["complete"] and row["macs"] <= budget["limits"]["macs"] and row["top1"] > best:
            best = row["top1"]
            found.append((number + 1, row["seconds"]))
    return found


@in_browser
def test_progress_steps_up_where_an_evaluation_was_better(show, digits):
    browser = show(digits)
    for axis, title in enumerate(("Architectures evaluated", "Time (s)")):
        _all(browser, "input[name=against]")[axis].click()
        assert title in _texts(browser, "#progress-chart .title")
        xs, values = [], []
        for budget, path in zip(digits["budgets"], _values(browser, "#progress-chart .best", "d"), strict=True):
            steps = _improvements(digits, budget)
            found = [float(x) for x in re.findall(r"[MH]([\d.]+)", path)]
            assert len(found) == len(steps) + 1  # the line goes on to the end
            xs += found[:-1]
            values += [step[axis] for step in steps]
        assert len(xs) >= 6
        slope, start = np.polyfit(values, xs, 1)
        assert slope > 1
        np.testing.assert_allclose(xs, slope * np.array(values) + start, atol=0.2)


@in_browser
def test_names_with_markup_are_text(show, hostile):
    browser = show(hostile, width=360)
    assert browser.execute_script("return window.hacked === undefined")
    assert _all(browser, "img") == [] and len(_all(browser, "script")) == 2
    assert HOSTILE in _texts(browser, "h1")[0] and HOSTILE in browser.execute_script("return document.title")
    assert HOSTILE in _texts(browser, "#table tbody td:last-child")
    assert HOSTILE in _texts(browser, "#config dd")
    assert _texts(browser, "#panel .stages tbody th")[1] == "mb1" + HOSTILE


@in_browser
@pytest.mark.parametrize("case", ["digits", "small", "hostile", "attentive_nas"])
def test_a_phone_needs_no_sideways_scrolling(case, show, request):
    result = report_cases.make(case, 60) if case == "attentive_nas" else request.getfixturevalue(case)
    browser = show(result, width=360, dark=True)
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    assert browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [360, 360]
    inside = """return [...document.querySelectorAll('body *')].filter((node) => !node.closest('.scroll, .hidden, svg')
        && node.getBoundingClientRect().right > 360.5).map((node) => node.outerHTML.slice(0, 80))"""
    assert browser.execute_script(inside) == []


@in_browser
def test_little_is_enough(show, small):
    browser = show(small)
    assert len(_all(browser, "#cloud .point")) == len(_rows(browser)) == 2
    hidden = {"budgets", "final", "pair"}
    assert {name for name in (*hidden, "progress") if not browser.find_element(By.ID, name).is_displayed()} == hidden
    assert _texts(browser, "#progress-legend li") == ["all architectures"]


@in_browser
@pytest.mark.parametrize("partial", [True, False])
def test_partial_scores_are_explained_where_there_are_any(partial, show, digits):
    rows = digits["evaluations"] if partial else [row for row in digits["evaluations"] if row["complete"]]
    browser = show({**digits, "evaluations": rows})
    assert ("Partial ones are estimates" in _texts(browser, "#reading dt")) == partial
    best = max(row["top1"] for row in digits["final"])
    error = 100 * np.sqrt(best * (1 - best) / report_cases.IMAGES_VAL)
    assert f"best figure is {error:.2f} points" in _texts(browser, "#final-words")[0]


@in_browser
def test_nothing_is_enough(show, small):
    browser = show({**small, "evaluations": [], "front": []})
    assert _rows(browser) == [] and not browser.find_element(By.ID, "panel").is_displayed()
    assert "No architecture" in _texts(browser, ".headline")[0]


@in_browser
def test_five_thousand_points_answer_at_once(show, digits):
    rows = [{**digits["evaluations"][n % 120], "number": n, "macs": digits["evaluations"][n % 120]["macs"] + n}
            for n in range(5000)]
    browser = show({**digits, "evaluations": rows})
    assert len(_all(browser, "#cloud .point")) == 5000
    assert len(_rows(browser)) == 200
    browser.find_element(By.ID, "more").click()
    assert len(_rows(browser)) == 400
    spent = browser.execute_script("""const svg = document.querySelector("#cloud svg");
        const area = svg.getBoundingClientRect();
        const start = performance.now();
        for (let n = 0; n < 50; n++) svg.dispatchEvent(new PointerEvent("pointermove",
          { clientX: area.left + 100 + 8 * n, clientY: area.top + 200, pointerType: "mouse" }));
        return (performance.now() - start) / 50""")
    assert spent < 50  # ms for a move of the pointer: far above what it takes, far below what redrawing would


@in_browser
def test_a_front_over_several_costs_and_a_cost_of_the_users_own(show, digits):
    """The line is that of the first cost; the table shows what no other beats in all of them."""
    result = copy.deepcopy(digits)
    for row in (*result["evaluations"], *result["final"]):
        row["own"] = 1e3 / row["macs"] ** 0.5
    complete = [row for row in result["evaluations"] if row["complete"]]
    result["surface"] = [row["number"] for row in complete[:30]]
    result["run"] |= {"costs": ["macs", "own"]}
    form.check(result)
    for part, value, words in (("surface", [9999], r"surface\[0\]: found 9999"), ("surface", 3, "surface: found 3"),
                               ("run", result["run"] | {"costs": ["macs", "x"]}, r"run.costs\[1\]: found 'x'")):
        with pytest.raises(FileError, match=words):
            form.check(result | {part: value})
    browser = show(result)
    words = browser.find_element(By.ID, "front-words").text.replace("\u2060", "")
    assert "30 architectures that no other beats in all of multiply-adds, own cost and top-1" in words
    path = browser.find_element(By.CSS_SELECTOR, "#cloud path.front").get_attribute("d")
    assert path.count("V") == len(result["front"]) - 1
    assert "Own cost" in _texts(browser, "#table thead button")
    browser.find_element(By.ID, "front-only").click()
    assert sorted(_rows(browser)) == sorted(result["surface"])
