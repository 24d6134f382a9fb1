"""The largest batch: a line through compiled peaks, and what fits under it."""

import json

import pytest

from benchmarks.gpu_memory import FRACTION, PAGE, RESULTS, inserted, largest, line, table


def test_the_line_goes_through_the_points_and_refuses_what_lies_off_it():
    points = {batch: 10**9 + 10**8 * batch for batch in (32, 64, 128)}
    assert line(points) == pytest.approx((1e9, 1e8))
    points[64] *= 1.05
    with pytest.raises(ValueError, match="found 7.77 GB at batch 64, expected 7.40 GB"):
        line(points)


def test_the_largest_batch_fits_and_the_next_does_not():
    for memory in (3e9, 42e9, 85e9):
        batch = largest(1e9, 1e8, memory)
        assert batch % 8 == 0
        assert 1e9 + 1e8 * batch <= FRACTION * memory < 1e9 + 1e8 * (batch + 8)
    assert largest(1e9, 1e8, 1.4e9) == 0


def test_the_table_has_a_line_for_each_row():
    row = {"space": "bignas", "dtype": "bfloat16", "remat": False, "bytes": 1e9, "bytes_an_image": 1e8,
           "largest": {"40 GB": 304, "80 GB": 624}}  # fmt: skip
    assert table([row]).splitlines()[-1] == "| bignas | bfloat16 | False | 9.0 GB | 100 MB | 304 | 624 |"


def test_the_page_has_the_table_of_the_committed_results():
    page = PAGE.read_text()
    assert inserted(page, table(json.loads(RESULTS.read_text()))) == page
