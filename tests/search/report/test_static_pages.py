"""The pages without scripts, in a real browser: they are whole at every width, and nothing in the data is markup."""

import chromium
import numpy as np
import pytest
import report_cases
from chromium import in_browser

from bignas_jax.search.report import comparison, evaluation

HOSTILE = "</title></style><script>window.hacked=1</script><img src=x onerror=window.hacked=2>&amp;\u2028"


def compared():
    hostile = report_cases.make("digits", 40, seed=1)
    hostile["run"]["strategy"] = hostile["final"][0]["name"] = HOSTILE
    return comparison.page({"first": report_cases.make("digits", 60), HOSTILE: hostile})


def evaluated():
    confusion = np.array([[8, 2, 0], [0, 9, 1], [3, 0, 7]])
    image = np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8)
    wrong = [evaluation.Wrong(HOSTILE, 0, 1, 0.9, 0.05, image), evaluation.Wrong("b.jpg", 2, 0, 0.8, 0.1, image)]
    return evaluation.page(HOSTILE, [HOSTILE, "cat", "dog"], confusion, wrong)


@pytest.fixture(scope="module")
def browser():
    with chromium.browser() as driver:
        yield driver


@in_browser
@pytest.mark.parametrize("made", [compared, evaluated])
def test_a_page_is_whole_and_quiet(browser, made, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(made(), encoding="utf-8")
    for width, dark in ((1280, False), (390, True)):
        chromium.open_page(browser, path, width, dark)
        assert browser.execute_script("return window.hacked") is None
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        sizes = browser.execute_script("return [...document.images].map((i) => [i.naturalWidth, i.complete])")
        assert sizes == ([[192, True]] * 2 if made is evaluated else [])
        assert browser.execute_script("return document.querySelectorAll('main > section').length") == 4
        texts = browser.execute_script("return document.body.innerText")
        assert "<script>window.hacked=1" in texts
        chromium.check_quiet(browser, path)


@in_browser
def test_every_curve_and_cell_stands_out(browser, tmp_path):
    """WCAG 2.2, 1.4.3: text 4.5 to 1 on the fullest cell of the confusion, in both themes."""
    path = tmp_path / "page.html"
    path.write_text(evaluated(), encoding="utf-8")
    for dark in (False, True):
        chromium.open_page(browser, path, dark=dark)
        ink, page, cell = browser.execute_script(
            "const of = (n, p) => getComputedStyle(n)[p].match(/[\\d.]+/g).map(Number);"
            "return [of(document.body, 'color'), of(document.documentElement, 'backgroundColor'),"
            " of(document.querySelectorAll('.matrix td')[4], 'backgroundColor')]")  # fmt: skip
        alpha = cell[3]
        mixed = [alpha * c + (1 - alpha) * p for c, p in zip(cell[:3], page[:3], strict=True)]
        assert 0.4 < alpha <= evaluation.HOTTEST and contrast(ink, mixed) >= 4.5


def contrast(a, b):
    low, high = sorted(map(luminance, (a, b)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour):
    channels = np.array(colour[:3]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
