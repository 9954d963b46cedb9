"""Tables, and a bar chart as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from bench_measure import MEASURES, Figures

_BASE = "strongSwan kernel-libipsec"
_BAR, _LEFT, _ROW, _GAP, _WIDTH = 16, 210, 20, 46, 760
_COLOURS = {"Mirrorgate": "#1b6ca8", "no VPN": "#9aa5ad"}


def table(figures: Mapping[str, Figures]) -> str:
    """Return all figures, and under each its ratio to strongSwan's, where that was measured."""
    names = _measured(figures)
    heads = [f"{MEASURES[name].what} {MEASURES[name].unit}" for name in names]
    first = max(len(name) for name in figures) + 2
    lines = [" " * first + "  ".join(f"{head:>20}" for head in heads)]
    base = figures.get(_BASE)
    for contender, found in figures.items():
        cells = [_cell(found[name], None if base is None else base[name]) for name in names]
        lines.append(f"{contender:<{first}}" + "  ".join(f"{cell:>20}" for cell in cells))
    if base is not None:
        lines.append(f"(x: ratio to {_BASE} in this run)")
    return "\n".join(lines)


def inside_text(inside: Mapping[str, Mapping[str, float]]) -> str:
    """Return what was measured of Mirrorgate alone."""
    lines = []
    for part, figures in inside.items():
        lines.append(f"{part}:")
        lines += [f"  {name:<28} {value:12.2f}" for name, value in figures.items()]
    return "\n".join(lines)


def bar_chart(figures: Mapping[str, Figures]) -> str:
    """Return one group of bars a measure."""
    names = _measured(figures)
    height = len(names) * (_GAP + _ROW * len(figures)) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
    ]
    top = 0
    for name in names:
        unit = MEASURES[name]
        top += _GAP
        better = "more is better" if unit.more_is_better else "less is better"
        title = f"{unit.what}, {unit.unit} ({better})"
        parts.append(f'<text x="10" y="{top - 12}" font-weight="bold">{escape(title)}</text>')
        largest = max(found[name] for found in figures.values()) or 1
        for contender, found in figures.items():
            parts += _bar(contender, found[name], found[name] / largest, top)
            top += _ROW
    return "\n".join([*parts, "</svg>"]) + "\n"


def _measured(figures: Mapping[str, Figures]) -> list[str]:
    return [name for name in MEASURES if all(name in found for found in figures.values())]


def _bar(contender: str, value: float, share: float, top: int) -> list[str]:
    colour = next((colour for stem, colour in _COLOURS.items() if contender.startswith(stem)), "#c98b2f")
    width = max(1, round(share * (_WIDTH - _LEFT - 80)))
    middle = top + 12
    return [
        f'<text x="{_LEFT - 8}" y="{middle}" text-anchor="end">{escape(contender)}</text>',
        f'<rect x="{_LEFT}" y="{top}" width="{width}" height="{_BAR}" fill="{colour}"/>',
        f'<text x="{_LEFT + width + 6}" y="{middle}">{value:.3g}</text>',
    ]


def _cell(value: float, base: float | None) -> str:
    ratio = "" if not base else f" (x{value / base:.2f})"
    return f"{value:.3g}{ratio}"
