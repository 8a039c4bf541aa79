"""report.html: a comparison on one page that needs nothing but itself, with a table that a click sorts."""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from utils.base.errors import printable

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222 }
body { max-width: 78rem; margin: 2rem auto; padding: 0 1rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right }
th { cursor: pointer; background: #f4f4f4 }
th[aria-sort=descending]::after { content: " ▾" }
th[aria-sort=ascending]::after { content: " ▴" }
th:first-child, td:first-child, th:last-child, td:last-child { text-align: left }
td.best { font-weight: 600 }
figure { margin: 2rem 0 }
img { max-width: 100%; height: auto }
"""
# figures are sorted by the number that a cell begins with, those without one always come last
_SORT = """
const number = text => parseFloat(text.replaceAll(",", ""));
for (const head of document.querySelectorAll("th")) head.onclick = () => {
  const body = document.querySelector("tbody"), place = head.cellIndex;
  const down = head.ariaSort !== "descending";
  const rows = [...body.rows].map(row => [row.cells[place].textContent, row]);
  const figures = rows.some(([text]) => !isNaN(number(text))) && place > 0;
  const sign = down ? -1 : 1, lost = text => figures && isNaN(number(text));
  const order = (a, b) => figures ? number(a) - number(b) : a.localeCompare(b);
  rows.sort(([a], [b]) => lost(a) - lost(b) || sign * order(a, b));
  for (const other of document.querySelectorAll("th")) other.ariaSort = null;
  head.ariaSort = down ? "descending" : "ascending";
  body.append(...rows.map(([, row]) => row));
};
"""


def page(
    title: str, cells: Sequence[Sequence[str]], caption: str, pictures: Sequence[Path], config: Mapping
) -> str:
    """The page of a table (`cells`, the first line its header), of pictures (PNG files) and settings."""
    header, *lines = cells
    head = "".join(f"<th>{_shown(cell)}</th>" for cell in header)
    rows = "".join(f"<tr>{''.join(map(_cell, line))}</tr>\n" for line in lines)
    settings = json.dumps(config, indent=2, default=str, ensure_ascii=False)
    parts = [
        f"<h1>{_shown(title)}</h1>",
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>',
        *(f"<p>{_shown(line)}</p>" for line in caption.splitlines()),
        *map(_figure, pictures),
        "<details><summary>Configuration, class counts and machine</summary>"
        f"<pre>{escape(settings, quote=False)}</pre></details>",
        f"<script>{_SORT}</script>",
    ]
    start = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_shown(title)}</title>'
    return "\n".join([start, f"<style>{_STYLE}</style>", *parts]) + "\n"


def _shown(text: str) -> str:
    return escape(printable(text))


def _cell(text: str) -> str:
    return f"<td{' class=best' * text.endswith('*')}>{_shown(text)}</td>"


def _figure(path: Path) -> str:
    image = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img alt="{escape(path.stem)}" src="data:image/png;base64,{image}"></figure>'
