"""The report as one HTML page that asks nothing of a network: words, tables, drawings, light and dark."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence

from .section import Section
from .tables import as_html

__all__ = ["page"]

STYLE = """
:root { color-scheme: light dark; --ink: #22262b; --muted: #69707a; --line: #dfe3e8; --pale: #b4bbc4;
  --paper: #ffffff; --shade: #f6f7f9; --ours: #fdf1e9; --accent: #b84f00; --good: #00684c; --bad: #a8261c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --muted: #9aa2ad; --line: #343a42; --pale: #5d6670;
  --paper: #15181c; --shade: #1c2025; --ours: #2b211a; --accent: #ff9b57; --good: #4fd1a5; --bad: #ff8a7d; } }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { margin: 0 auto; max-width: 84rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem }
h2 { font-size: 1.25rem; margin: 3rem 0 .25rem; padding-top: 1rem; border-top: 1px solid var(--line) }
p { max-width: 50rem; margin: .5rem 0 }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; margin: 1rem 0; padding: 0 }
a { color: var(--accent) }
code { font-size: .9em; background: var(--shade); padding: .1em .3em; border-radius: .2em }
.note, figcaption { color: var(--muted); font-size: .875rem }
.scroll { overflow-x: auto; margin: 1rem 0 }
.scroll:focus-visible, button:focus-visible, a:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
caption { text-align: left; color: var(--muted); padding: .25rem 0 }
th, td { padding: .35rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
thead th { vertical-align: bottom; background: var(--shade); font-weight: 600; min-width: 4rem; max-width: 9rem }
tbody th { font-weight: 400; position: sticky; left: 0; background: var(--paper) }
tbody th, td { white-space: nowrap }
td.long { white-space: normal; min-width: 16rem }
.number { text-align: right }
tr.ours { background: var(--ours) }
tr.ours th { font-weight: 600; background: var(--ours) }
.good { color: var(--good); font-weight: 600 }
.bad { color: var(--bad); font-weight: 600 }
thead button { font: inherit; color: inherit; background: none; border: 0; padding: 0; text-align: inherit;
  cursor: pointer }
thead button::after { content: "\\00a0\\2195"; color: var(--muted); font-weight: 400 }
[aria-sort=ascending] button::after { content: "\\00a0\\2191" }
[aria-sort=descending] button::after { content: "\\00a0\\2193" }
figure { margin: 1.25rem 0; overflow-x: auto }
figure svg { display: block; width: 100%; min-width: 34rem; max-width: 50rem; height: auto }
@media (max-width: 40rem) { tbody th { white-space: normal; min-width: 8rem; max-width: 10rem } }
@media print { body { max-width: none } .scroll { overflow: visible } }
"""

# Heads become buttons only where this runs: without it the tables are whole, in the order they were measured.
SCRIPT = """
const key = cell => ({ last: cell.textContent === "-", figure: parseFloat(cell.dataset.sort), text: cell.textContent });
const order = (a, b) => Number.isNaN(a.figure + b.figure)
  ? a.text.localeCompare(b.text, "en", { numeric: true }) : a.figure - b.figure;
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down > 0 ? "ascending" : "descending");
      const keyed = [...body.rows].map(row => [key(row.cells[column]), row]);
      keyed.sort(([a], [b]) => a.last - b.last || down * order(a, b));
      body.append(...keyed.map(([, row]) => row));
    });
  });
}
"""


def page(title: str, sections: Sequence[Section], drawings: Mapping[str, str]) -> str:
    """drawings: picture's name -> its <svg>."""
    links = "".join(f'<li><a href="#{one.slug}">{html.escape(one.title)}</a></li>' for one in sections)
    body = "\n".join(_section(one, drawings) for one in sections)
    head = html.escape(title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{head}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{head}</h1>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{body}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _section(section: Section, drawings: Mapping[str, str]) -> str:
    text = "\n".join(f"<p>{_words(one)}</p>" for one in section.text)
    figures = "\n".join(f"<figure>{drawings[one.name]}</figure>" for one in section.pictures)
    tables = "\n".join(as_html(table) for table in section.tables)
    return (
        f'<section id="{section.slug}" aria-labelledby="{section.slug}-title">\n'
        f'<h2 id="{section.slug}-title">{html.escape(section.title)}</h2>\n{text}\n{figures}\n{tables}\n</section>'
    )


def _words(text: str) -> str:
    """With `code` as Markdown has it."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))
