"""The README and the docs point at files that there are."""

import re

import pytest
from paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_points_at_is_there(page):
    text = page.read_text()
    links = {page.parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)}
    named = {ROOT / name for name in re.findall(r"`((?:bignas_jax|benchmarks|configs|tests)/[\w/.]+)`", text)}
    assert links | named
    assert [str(path) for path in sorted(links | named) if not path.exists()] == []
