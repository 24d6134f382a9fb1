"""The evaluation of a child as a page: its confusion, its worst classes, and images that it is surest and wrong on."""

import base64
import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from bignas_jax.search.report import static

MATRIX = 30  # classes up to which the whole matrix is drawn
ROWS = 20  # of the tables of classes and of confusions
THUMBNAIL, PIXELS = 192, 64  # sides in pixels: of larger images on the page; up to which images are kept exactly
HOTTEST = 0.45  # opacity of the fullest cell: ink stands out from it


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A wrong answer.

    Attributes:
      name: of the image.
      label: the number of its class.
      found: the number of the class that it got.
      probability: of that class.
      own: the probability of its own class.
      image: uint8 [S, S, 3], as the child saw it, before it is brought to the child's resolution.
    """

    name: str
    label: int
    found: int
    probability: float
    own: float
    image: np.ndarray = dataclasses.field(repr=False, compare=False)


def page(
    title: str, class_names: Sequence[str], confusion: np.ndarray, wrong: Sequence[Wrong], left_out: int = 0
) -> str:
    """The HTML of an evaluation. It holds no script, and its images.

    Args:
      title: the child and its images, in words.
      class_names: of the run's classes.
      confusion: int [classes, classes]: images of a class (row) by the class that they got (column).
      wrong: the surest wrong answers, the surest first.
      left_out: how many corrupt images were left out.
    """
    total, right = int(confusion.sum()), int(np.trace(confusion))
    words = f"{100 * right / total:.2f}% of {total:,} images are named rightly."
    if left_out:
        words += f" {left_out:,} corrupt images were left out."
    sections = [
        static.section("worst", "Worst classes", "Of each class: the share of its images that got its name, the "
                       "class that it was taken for most often, and how many images of others got its name.",
                       _worst(class_names, confusion)),  # fmt: skip
        static.section("confusions", "Most frequent confusions", "" if total > right else "There are none.",
                       *([_pairs(class_names, confusion)] if total > right else [])),  # fmt: skip
    ]
    if len(class_names) <= MATRIX:
        sections.append(
            static.section("matrix", "Confusion", "A row for each class of the images, a column for each answer.",
                           _matrix(class_names, confusion))  # fmt: skip
        )
    if wrong:
        sections.append(
            static.section("wrong", "Surest and wrong", "The wrong answers of the highest probability. Some of them "
                           "may be wrong labels.", _images(class_names, wrong))  # fmt: skip
        )
    return static.page(title, words, sections)


def worst_classes(confusion: np.ndarray) -> list[int]:
    """The classes that have images, from the lowest share of right answers; of equal shares, more images first."""
    images = confusion.sum(1)
    share = np.diag(confusion) / np.maximum(images, 1)
    return sorted(np.flatnonzero(images).tolist(), key=lambda label: (share[label], -images[label], label))


def confusions(confusion: np.ndarray) -> list[tuple[int, int, int]]:
    """(class, answer, images) of all wrong answers, the most frequent first."""
    off = confusion - np.diag(np.diag(confusion))
    found = [(int(a), int(b), int(off[a, b])) for a, b in np.argwhere(off)]
    return sorted(found, key=lambda one: (-one[2], one[:2]))


def _worst(names: Sequence[str], confusion: np.ndarray) -> str:
    rows = []
    for label in worst_classes(confusion)[:ROWS]:
        row, images = confusion[label].copy(), int(confusion[label].sum())
        row[label] = 0
        other = f"{names[int(row.argmax())]} ({int(row.max()):,})" if row.any() else "-"
        others = int(confusion[:, label].sum() - confusion[label, label])
        share = f"{100 * confusion[label, label] / images:.1f}%"
        rows.append([names[label], other, share, f"{images:,}", f"{others:,}"])
    return static.table(["class", "taken for", "right", "images", "others named so"], rows, left=2)


def _pairs(names: Sequence[str], confusion: np.ndarray) -> str:
    rows = [
        [names[label], names[found], f"{count:,}", f"{100 * count / confusion[label].sum():.1f}%"]
        for label, found, count in confusions(confusion)[:ROWS]
    ]
    return static.table(["class", "answer", "images", "of the class"], rows, left=2)


def _matrix(names: Sequence[str], confusion: np.ndarray) -> str:
    def cell(label: int, found: int) -> str:
        count = int(confusion[label, found])
        heat = HOTTEST * (count / max(int(confusion[label].sum()), 1)) ** 0.5  # a single image is seen, too
        right = ' class="right"' if label == found else ""
        words = static.text(f"{names[label]} named {names[found]}: {count}")
        return f'<td{right} style="background:rgb(var(--hot) / {heat:.3f})" title="{words}">{count or ""}</td>'

    head = "".join(f"<th>{static.text(name)}</th>" for name in names)
    body = "".join(
        f"<tr><th>{static.text(name)}</th>{''.join(cell(label, found) for found in range(len(names)))}</tr>"
        for label, name in enumerate(names)
    )
    return (f'<div class="scroll" role="region" tabindex="0" aria-label="confusion"><table class="matrix"><thead><tr>'
            f"<th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>")  # fmt: skip


def _images(names: Sequence[str], wrong: Sequence[Wrong]) -> str:
    figures = [
        f'<figure><img src="{encoded(one.image)}" alt="{static.text(one.name)}"><figcaption>'
        f"<b>{static.text(names[one.found])}</b> {100 * one.probability:.1f}%<br>is {static.text(names[one.label])} "
        f"({100 * one.own:.1f}%)<br><small>{static.text(one.name)}</small></figcaption></figure>"
        for one in wrong
    ]
    pixels = " pixels" if wrong[0].image.shape[0] <= PIXELS else ""
    return f'<div class="images{pixels}">{"".join(figures)}</div>'


def encoded(image: np.ndarray) -> str:
    """An image as the text of its own address: exactly if it is small, otherwise as a smaller JPEG."""
    picture, file = Image.fromarray(image), io.BytesIO()
    if max(image.shape[:2]) <= PIXELS:
        picture.save(file, "PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
