"""The page itself: one file, no script, nothing loaded from anywhere."""

from collections.abc import Iterable, Sequence

from eval.analysis.svg import text

STYLE = """
:root { color-scheme: light dark;
  --bg: #ffffff; --ink: #1b2027; --dim: #5a6573; --rule: #d8dee6; --panel: #f5f7f9;
  --lo: #e4edf7; --hi: #0f4f94; --on-lo: #1b2027; --on-hi: #ffffff;
  --none: #e3e6ea; --on-none: #3c4652; --good: #14713d; --bad: #b3261e;
  --c0: #2b6cb0; --c1: #b7560b; --c2: #2b7a3d; --c3: #b02a37;
  --c4: #6f4bb0; --c5: #7c5a3a; --c6: #b03a7f; --c7: #48586b; --on-colour: #ffffff; }
@media (prefers-color-scheme: dark) { :root {
  --bg: #13171c; --ink: #e4e9ef; --dim: #9aa6b4; --rule: #303842; --panel: #1b2027;
  --lo: #1e2d3f; --hi: #8cc4ff; --on-lo: #e4e9ef; --on-hi: #0b1119;
  --none: #333c47; --on-none: #d5dce4; --good: #6fd39a; --bad: #ff8f85;
  --c0: #6fb0f2; --c1: #f2a65e; --c2: #7fd08f; --c3: #f58a91;
  --c4: #b79af2; --c5: #cfa980; --c6: #ee90c4; --c7: #a9b7c6; --on-colour: #10151b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 40px 0 8px;
  padding-top: 14px; border-top: 1px solid var(--rule); }
h3 { font-size: 16px; margin: 24px 0 6px; }
p { margin: 6px 0 12px; max-width: 76ch; } .dim, .note { color: var(--dim); }
nav a { margin-right: 14px; } a { color: var(--c0); }
code { font: 13px ui-monospace, "DejaVu Sans Mono", monospace; background: var(--panel);
  padding: 1px 4px; border-radius: 3px; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 8px 0 16px; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; text-align: right; border-bottom: 1px solid var(--rule);
  white-space: nowrap; vertical-align: top; }
th { color: var(--dim); font-weight: 600; border-bottom-width: 2px; }
th { white-space: normal; }
th.l, td.l { text-align: left; white-space: normal; max-width: 260px; }
td.text { text-align: left; white-space: normal; min-width: 300px;
  max-width: 520px; overflow-wrap: anywhere; }
td.good { color: var(--good); } td.bad { color: var(--bad); }
summary { cursor: pointer; } details p { white-space: pre-wrap; margin: 6px 0; }
.grid2 { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr));
  gap: 14px; }
.row { display: flex; flex-wrap: wrap; gap: 0 48px; }
figure { margin: 10px 0; min-width: 0; max-width: 100%; } figcaption { font-size: 13px;
  color: var(--dim); margin-bottom: 2px; } svg { width: 100%; height: auto; display: block; }
.fixed { overflow-x: auto; } .fixed svg { max-width: none; }
svg text { font: 11px system-ui, "DejaVu Sans", sans-serif; fill: var(--ink); }
svg text.tick, svg text.label { fill: var(--dim); } svg .grid { stroke: var(--rule); }
svg .axis { stroke: var(--dim); } svg .none { fill: none; stroke: var(--rule); }
svg text.on-colour { fill: var(--on-colour); } svg text.on-none { fill: var(--on-none); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 4px 0 8px;
  padding: 0; font-size: 13px; } .legend i { display: inline-block; width: 12px; height: 12px;
  border-radius: 2px; margin-right: 6px; vertical-align: -1px; }
.missing { background: var(--panel); border-left: 3px solid var(--c1); padding: 8px 14px; }
.missing ul { margin: 4px 0; padding-left: 20px; }
"""


# Where on the ramp from --lo to --hi (in tenths) a figure needs the other ink: the ramps of light
# and dark cross the ink's contrast at different places.
_DARKENS, _LIGHTENS = 6, 4


def _inks() -> str:
    """The style of the figures in heat maps' cells."""
    rule = lambda names, ink: (
        f'{", ".join(f"svg text.on{i}" for i in names)} {{ fill: var({ink}); }}'
    )
    light = rule(range(_DARKENS + 1), '--on-lo') + rule(range(_DARKENS + 1, 11), '--on-hi')
    dark = rule(range(_LIGHTENS + 1), '--on-lo') + rule(range(_LIGHTENS + 1, 11), '--on-hi')
    return f'{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n'


def in_order(names: Iterable[str]) -> list[str]:
    """Projections as people list them (q, k, v, o), then the other modules by name.

    Example:
      >>> in_order({'out_proj', 'k_proj', 'q_proj', 'c_fc'})
      ['q_proj', 'k_proj', 'out_proj', 'c_fc']
    """
    first = {'q': 0, 'k': 1, 'v': 2, 'o': 3}
    return sorted(names, key=lambda name: (first.get(name[:1], 4), name))


def page(title: str, sections: Sequence[tuple[str, str]], foot: str) -> str:
    """The document.

    Args:
      title: of it; plain text.
      sections: (heading, HTML); the first has the title above it and no heading of its own.
      foot: plain text below all.
    """
    (_, first), *rest = sections
    links = ''.join(f'<a href="#s{i}">{text(name)}</a>' for i, (name, _) in enumerate(rest))
    body = ''.join(
        f'<section id="s{i}"><h2>{text(name)}</h2>{part}</section>'
        for i, (name, part) in enumerate(rest)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{text(title)}</title><style>{STYLE}{_inks()}</style></head>\n'
        f'<body><main><h1>{text(title)}</h1><nav>{links}</nav>{first}{body}'
        f'<p class="dim">{text(foot)}</p></main></body></html>\n'
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table that scrolls by itself where it is wide.

    Args:
      header: plain text.
      rows: cells: plain text, or HTML that begins with '<td'.
      left: so many first columns are text, the others figures.
    """
    side = lambda i: ' class="l"' if i < left else ''
    head = ''.join(f'<th{side(i)}>{text(name)}</th>' for i, name in enumerate(header))
    cell = lambda i, c: c if c.startswith('<td') else f'<td{side(i)}>{text(c)}</td>'
    body = ''.join(f'<tr>{"".join(cell(i, c) for i, c in enumerate(row))}</tr>' for row in rows)
    inner = f'<thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
    return f'<div class="scroll"><table>{inner}</table></div>'


def long(content: str, shown: int = 180) -> str:
    """A cell of running text; what is longer than `shown` letters folds away."""
    if len(content) <= shown:
        return f'<td class="text">{text(content)}</td>'
    start = content[:shown].rsplit(' ', 1)[0]
    return (
        f'<td class="text"><details><summary>{text(start)} …</summary>'
        f'<p>{text(content)}</p></details></td>'
    )


def note(content: str) -> str:
    """A paragraph of plain text below a heading."""
    return f'<p class="note">{text(content)}</p>'
