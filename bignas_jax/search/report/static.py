"""What the pages without scripts share: a head that may fetch nothing, the look, tables, and plots as SVG.

Every text goes through `text`, so that no name in the data can be markup.
"""

import html
from collections.abc import Iterable, Sequence
from typing import Any

from bignas_jax.text import shown

# Of report.html: each stands out from the page by 4.5 to 1 in both themes. A curve has a colour and a dash of its own.
COLOURS = ("--c0", "--c1", "--c2", "--c3", "--c4", "--c5")
DASHES = ("", "7 3", "2 3")

_STYLE = """
:root {
  --page: #ffffff; --card: #f6f7f8; --ink: #1b1e22; --muted: #59616b; --line: #dfe2e6; --hot: 11 92 173;
  --c0: #0b5cad; --c1: #b5480d; --c2: #0b7a5a; --c3: #9b3a86; --c4: #6b6100; --c5: #4b5563;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  color: var(--ink); background: var(--page); font-variant-numeric: tabular-nums;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #15181c; --card: #1e2227; --ink: #eceef0; --muted: #a6aeb8; --line: #343a42; --hot: 125 184 245;
    --c0: #7db8f5; --c1: #ff9f66; --c2: #5fd0a8; --c3: #e795d4; --c4: #d8cb5e; --c5: #b6bec8;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1100px; padding: 28px 24px 56px; overflow-wrap: break-word; }
h1 { font-size: 1rem; font-weight: 600; color: var(--muted); margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0; }
section { margin-top: 44px; }
p { margin: 6px 0; max-width: 72ch; }
section > p, .note { color: var(--muted); }
.headline { font-size: clamp(1.3rem, 0.9rem + 1.6vw, 1.9rem); line-height: 1.28; font-weight: 650; margin: 6px 0 0; }
.scroll { overflow-x: auto; margin-top: 12px; }
table { border-collapse: collapse; font-size: 0.875rem; }
th { font-weight: 600; }
td, th { padding: 5px 16px 5px 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
.name { text-align: left; overflow-wrap: anywhere; min-width: 8em; }
svg { display: block; max-width: 100%; height: auto; margin-top: 12px; }
svg text { font: 12px system-ui, sans-serif; fill: var(--muted); }
.curve { fill: none; stroke-width: 2; }
.grid { stroke: var(--line); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; list-style: none; margin: 12px 0 0; padding: 0; }
.legend li { display: flex; gap: 8px; align-items: center; overflow-wrap: anywhere; font-size: 0.875rem; }
.legend svg { margin: 0; flex: none; }
.matrix td, .matrix th { border: 1px solid var(--line); padding: 3px 6px; text-align: center; font-size: 0.75rem; }
.matrix td { min-width: 2.6em; }
.matrix .right { outline: 2px solid var(--ink); outline-offset: -2px; }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 18px; margin-top: 14px; }
figure { margin: 0; }
figure img { width: 100%; height: auto; display: block; background: var(--card); border-radius: 6px; }
.pixels img { image-rendering: pixelated; }
figcaption { font-size: 0.8125rem; line-height: 1.4; margin-top: 5px; overflow-wrap: anywhere; }
figcaption small { color: var(--muted); }
footer { margin-top: 56px; border-top: 1px solid var(--line); padding-top: 14px; font-size: 0.8125rem;
  color: var(--muted); }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:;
  base-uri 'none'; form-action 'none'">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1><p class="headline">{headline}</p></header>
<main>
{body}
</main>
<footer><p>Written by bignas_jax.</p></footer>
</body>
</html>
"""


def text(value: Any) -> str:
    """A value as text of a page, whatever it holds."""
    return html.escape(shown(str(value)))


def page(title: str, headline: str, sections: Iterable[str]) -> str:
    """A whole page. Title and headline are plain text; the sections are markup."""
    return _PAGE.format(title=text(title), style=_STYLE, headline=text(headline), body="\n".join(sections))


def section(name: str, heading: str, words: str, *inner: str) -> str:
    """A section with a heading and a paragraph, which are plain text, and then markup."""
    head = f'<section id="{name}" aria-labelledby="h-{name}"><h2 id="h-{name}">{text(heading)}</h2>'
    return "\n".join([head, f"<p>{text(words)}</p>" if words else "", *inner, "</section>"])


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], left: int = 1) -> str:
    """A table of plain text; the first `left` columns hold names."""

    def cells(tag: str, values: Sequence[Any]) -> str:
        kinds = [' class="name"' if n < left else "" for n in range(len(values))]
        return "".join(f"<{tag}{kind}>{text(v)}</{tag}>" for kind, v in zip(kinds, values, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (f'<div class="scroll" role="region" tabindex="0" aria-label="table"><table><thead><tr>{cells("th", head)}'
            f"</tr></thead><tbody>{body}</tbody></table></div>")  # fmt: skip


def stroke(number: int) -> str:
    """The look of curve `number`: no two of the first 18 are alike."""
    dash = DASHES[number // len(COLOURS) % len(DASHES)]
    dashes = f";stroke-dasharray:{dash}" if dash else ""
    return f"stroke:var({COLOURS[number % len(COLOURS)]}){dashes}"
