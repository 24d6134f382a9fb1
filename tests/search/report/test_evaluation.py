"""The page of an evaluation: its figures are those of the answers, counted one by one."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from bignas_jax.search.report import evaluation

NAMES = ["ant", "bee", "<b>cat</b>", "dog"]


@pytest.fixture(scope="module")
def answers():
    rng = np.random.default_rng(0)
    labels = rng.choice(4, 500, p=[0.4, 0.3, 0.3, 0.0])
    found = np.where(rng.random(500) < [0.9, 0.5, 0.7, 1.0] @ np.eye(4)[labels].T, labels, rng.integers(0, 4, 500))
    confusion = np.zeros((4, 4), int)
    for label, answer in zip(labels, found, strict=True):
        confusion[label, answer] += 1
    return labels, found, confusion


def test_classes_and_confusions_are_in_order(answers):
    labels, found, confusion = answers
    shares = [np.mean(found[labels == c] == c) for c in range(3)]
    assert evaluation.worst_classes(confusion) == list(np.argsort(shares)) == [1, 2, 0]
    pairs = evaluation.confusions(confusion)
    assert all(n == np.sum((labels == a) & (found == b)) and a != b for a, b, n in pairs)
    assert [n for *_, n in pairs] == sorted((n for *_, n in pairs), reverse=True)
    assert sum(n for *_, n in pairs) == np.sum(labels != found)
    assert evaluation.worst_classes(np.array([[5, 5, 0], [2, 2, 0], [0, 0, 0]])) == [0, 1]  # more images first


def test_the_page_says_the_figures(answers):
    labels, found, confusion = answers
    page = evaluation.page("A child", NAMES, confusion, [], left_out=3)
    assert f"{100 * np.mean(labels == found):.2f}% of 500 images are named rightly. 3 corrupt images" in page
    bee = f"{100 * np.mean(found[labels == 1] == 1):.1f}%"
    assert f'<td class="name">bee</td><td class="name">{most(labels, found, 1)}</td><td>{bee}</td>' in page
    assert "&lt;b&gt;cat&lt;/b&gt;" in page and "<b>cat" not in page
    cells = re.findall(r"<td[^>]*rgb[^>]*>(\d*)</td>", page)
    assert [int(cell or 0) for cell in cells] == confusion.reshape(-1).tolist()
    assert 'id="wrong"' not in page
    assert 'id="matrix"' not in evaluation.page("", [str(n) for n in range(40)], np.eye(40, dtype=int), [])
    assert "There are none." in evaluation.page("", NAMES, np.eye(4, dtype=int), [])


def most(labels, found, label):
    others = np.bincount(found[(labels == label) & (found != label)], minlength=4)
    return f"{NAMES[others.argmax()]} ({others.max()})".replace("<", "&lt;").replace(">", "&gt;")


@pytest.mark.parametrize("side, kind", [(16, "png"), (300, "jpeg")])
def test_images_are_in_the_page(side, kind):
    image = np.full((side, side, 3), [200, 30, 90], np.uint8)
    page = evaluation.page("", NAMES, np.eye(4, dtype=int),
                           [evaluation.Wrong("dir/x & y.png", 0, 3, 0.875, 0.1, image)])  # fmt: skip
    (text,) = re.findall(rf'src="data:image/{kind};base64,([^"]+)"', page)
    back = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
    assert back.shape[0] == min(side, evaluation.THUMBNAIL) and np.abs(back.astype(int) - image[0, 0]).max() <= 3
    assert "<b>dog</b> 87.5%<br>is ant (10.0%)" in page and "dir/x &amp; y.png" in page
