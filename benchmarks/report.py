"""What a benchmark returns, tables and ratios, and how they are printed: as aligned text or as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Table:
    """Rows of figures, each a dict from the names of the columns; `note` says how to read them."""

    title: str
    rows: list[dict[str, Any]]
    note: str = ''


@dataclass
class Ratio:
    """A ratio measured once a repeat, and the bound that the project sets itself for its median."""

    name: str
    values: list[float]
    at_most: float | None = None
    at_least: float | None = None

    @property
    def bound(self) -> str:
        """The bound in words."""
        words = ('at most', self.at_most), ('at least', self.at_least)
        return ', '.join(f'{word} {figure(value)}' for word, value in words if value is not None)

    def row(self) -> dict[str, Any]:
        """The ratio as a row of a table."""
        lowest, highest = min(self.values), max(self.values)
        return {
            'ratio': self.name,
            'median': statistics.median(self.values),
            'range': f'{figure(lowest)} to {figure(highest)}',
            'bound': self.bound,
        }


@dataclass
class Result:
    """The tables and the ratios of a benchmark."""

    tables: list[Table] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return {
            'tables': [asdict(table) for table in self.tables],
            'ratios': [{**asdict(ratio), 'median': statistics.median(ratio.values)} for ratio in self.ratios],
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Result:
        """The result whose `to_dict` is `content`."""
        ratios = [{name: x for name, x in ratio.items() if name != 'median'} for ratio in content['ratios']]
        return cls([Table(**table) for table in content['tables']], [Ratio(**ratio) for ratio in ratios])


def quotients(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """The ratios of the times of one repeat."""
    return [a / b for a, b in zip(above, below, strict=True)]


def figure(value: Any) -> str:
    """A value as it is printed: three significant digits, no exponents."""
    if not isinstance(value, float):
        return '' if value is None else str(value)
    return f'{value:.0f}' if abs(value) >= 100 else f'{value:#.3g}'.rstrip('.')


def as_text(result: Result) -> str:
    """The tables with aligned columns, and the ratios."""
    parts = []
    for table in _tables(result):
        columns = [
            [f'{cell:{">" if _has_figures(column) else "<"}{max(map(len, column))}}' for cell in column]
            for column in _columns(table)
        ]
        lines = ['  '.join(row).rstrip() for row in zip(*columns, strict=True)]
        parts.append('\n'.join([table.title, *lines, *([table.note] if table.note else [])]))
    return '\n\n'.join(parts)


def as_markdown(result: Result) -> str:
    """The tables and the ratios for docs/benchmarks.md."""
    parts = []
    for table in _tables(result):
        columns = _columns(table)
        head, *rows = (f'| {" | ".join(row)} |' for row in zip(*columns, strict=True))
        rule = '|'.join('---:' if _has_figures(column) else '---' for column in columns)
        lines = [f'**{table.title}**', '', head, f'|{rule}|', *rows]
        parts.append('\n'.join([*lines, *(['', table.note] if table.note else [])]))
    return '\n\n'.join(parts)


def _tables(result: Result) -> list[Table]:
    ratios = [Table('Ratios (medians of paired repeats)', [ratio.row() for ratio in result.ratios])]
    return result.tables + (ratios if result.ratios else [])


def _columns(table: Table) -> list[list[str]]:
    """The columns as they are printed, each with its name above."""
    return [[name, *(figure(row[name]) for row in table.rows)] for name in table.rows[0]]


def _has_figures(column: list[str]) -> bool:
    return all(cell[:1] in '-0123456789' for cell in column[1:])
