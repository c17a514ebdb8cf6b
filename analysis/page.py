"""HTML by value: everything is escaped unless it is Markup. No script, nothing from elsewhere."""

import base64
import html
from collections.abc import Iterable, Sequence

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d5dae0; --back: #ffffff;
  --box: #f5f7f9; --warn: #9a5b00; --link: #0757b8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebee; --soft: #a3adb8; --line: #3a424c;
  --back: #15191e; --box: #1f252c; --warn: #f0b35a; --link: #7fb5ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 66rem; background: var(--back);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-top: .8rem; border-top: 2px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.7rem 0 .4rem; }
p, ul { margin: .5rem 0; max-width: 48rem; }
a { color: var(--link); }
.finding { font-size: 1.12rem; font-weight: 600; }
.note, figcaption { color: var(--soft); font-size: .86rem; }
.warn { border-left: 4px solid var(--warn); background: var(--box); padding: .45rem .9rem; margin: .8rem 0; }
.warn strong { color: var(--warn); }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figure { margin: .6rem 0; flex: 1 1 21rem; min-width: 0; max-width: 44rem; }
.figures figure { max-width: 32rem; }
figure.wide { flex-basis: 100%; max-width: 58rem; }
img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 4px; }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td code { white-space: nowrap; }
td:first-child { white-space: nowrap; }
td.n, th.n { text-align: right; white-space: nowrap; }
tr.best td { font-weight: 700; }
tr.member td:first-child { box-shadow: inset 3px 0 0 #d1242f; }
pre { background: var(--box); border: 1px solid var(--line); border-radius: 4px; padding: .6rem .8rem;
  margin: .5rem 0; font: .82rem/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
code { font: .9em ui-monospace, "DejaVu Sans Mono", Menlo, monospace; overflow-wrap: anywhere; }
@media (max-width: 40rem) { td:not(.n):not(:first-child) { min-width: 8rem; }
  td:last-child:not(:first-child):not(.n) { min-width: 11rem; } }
@media print { :root { --ink: #000; --soft: #444; --line: #bbb; --back: #fff; --box: #fff; --warn: #7a4600; }
  body { max-width: none; font-size: 10.5pt; padding: 0; } figure, tr, .warn { break-inside: avoid; }
  h2, h3 { break-after: avoid; } .scroll { overflow: visible; } }
"""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(value: object) -> Markup:
    """`value` as HTML text; Markup stays as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def tag(name: str, *children: object, **attributes: str) -> Markup:
    """An element; `class_` and the like lose their underscore."""
    said = "".join(f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{said}>{''.join(map(escape, children))}</{name}>")


def join(parts: Iterable[object]) -> Markup:
    """Parts below each other."""
    return Markup("\n".join(escape(part) for part in parts if part))


def bullets(items: Sequence[object]) -> Markup:
    """An unordered list; nothing for no items."""
    return tag("ul", *(tag("li", item) for item in items)) if items else Markup("")


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numeric: Iterable[int] = (),
    classes: Sequence[str] = (),
) -> Markup:
    """A table that scrolls sideways on a narrow screen; columns in `numeric` are aligned right."""
    right = set(numeric)

    def cells(name: str, values: Sequence[object]) -> Markup:
        return Markup(
            "".join(
                tag(name, value, class_="n") if index in right else tag(name, value)
                for index, value in enumerate(values)
            )
        )

    body = []
    for index, row in enumerate(rows):
        kind = classes[index] if index < len(classes) else ""
        body.append(tag("tr", cells("td", row), class_=kind) if kind else tag("tr", cells("td", row)))
    return tag(
        "div",
        tag("table", tag("thead", tag("tr", cells("th", headers))), tag("tbody", join(body))),
        class_="scroll",
    )


def image(png: bytes, alternative: str, caption: object, *, wide: bool = False) -> Markup:
    """A figure with its bytes inside the page."""
    source = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    picture = Markup(f'<img src="{source}" alt="{html.escape(alternative)}">')
    return tag("figure", picture, tag("figcaption", caption), **({"class_": "wide"} if wide else {}))


def page(title: str, *parts: object) -> str:
    """The whole document."""
    head = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    )
    return f"{head}{join(parts)}\n</body>\n</html>\n"
