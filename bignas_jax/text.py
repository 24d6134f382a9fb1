"""Text in columns, and text that came from files and may hold anything."""

import sys
from collections.abc import Sequence

LONGEST = 1000  # characters of a message; a value of a file can be of any length


def aligned(head: Sequence[str], body: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lines of text in columns under a head; the first `left` columns begin, the others end in line.

    Cells are escaped as `shown` does it.
    """
    body = [[shown(cell) for cell in line] for line in body]
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


def one_line(message: str) -> str:
    """A message as one line that every terminal takes, whatever the files hold that it quotes.

    White space becomes single spaces, other control characters are escaped, and the middle of a long one is left out.
    """
    text = shown(" ".join(message.split()))
    return text if len(text) <= LONGEST else f"{text[: LONGEST * 2 // 3]} ... {text[-LONGEST // 3 :]}"


def tell(message: str) -> None:
    """Says something on stderr, in one line."""
    print(one_line(message), file=sys.stderr, flush=True)
