"""Text in columns, and names that may hold anything."""

from collections.abc import Sequence


def aligned(head: Sequence[str], body: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lines of text in columns under a head; the first `left` columns begin, the others end in line."""
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]

    def text(line: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([text(head), "  ".join("-" * width for width in widths), *map(text, body)])


def shown(name: str) -> str:
    """A name as one line that every terminal takes: line ends, control characters and broken bytes are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
