"""The report: each number beside the bar that it is held to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.bench.measure import Measured


@dataclass(frozen=True)
class Verdict:
    """One number, and what is asked of it."""

    name: str
    found: str
    bar: str = ""
    """As people read it; empty where nothing is asked."""
    met: bool = True
    more: str = ""


def against_e(row: Measured, e: Measured, bar: float | None, others: Mapping[str, int]) -> Verdict:
    """Holds a row's rate to a share of its own E's; with `others`, answers that do not count, it is never met."""
    ratio = row.per_second / e.per_second
    more = f"{row.per_second:,.0f}/s of {e.per_second:,.0f}/s"
    if e.total_us:  # the clock of CPU time is coarse: a handful of requests may cost nothing
        more += f", {row.total_us / e.total_us:.2f} × its CPU"
    if others:
        more += f", but also {counted(others)}"
    wanted = "" if bar is None else f"at least {bar:.2f} E"
    met = not others and (bar is None or ratio >= bar)
    return Verdict(f"{row.name}, {row.connections} connections", f"{ratio:.2f} E", wanted, met, more)


def cheaper(few: Measured, many: Measured) -> Verdict:
    """Holds CPU time per unit to fall as connections rise."""
    return Verdict(
        f"CPU per held unit, {few.connections} → {many.connections} connections",
        f"{few.total_us:,.0f} → {many.total_us:,.0f} µs",
        "falls",
        many.total_us < few.total_us,
    )


def side_by_side(few: Measured, many: Measured) -> list[str]:
    """CPU microseconds per held unit by process, at both numbers of connections."""
    columns = f"{f'{few.connections} connections':>18}{f'{many.connections} connections':>18}"
    lines = [f"{'CPU µs per held unit':<24}{columns}"]
    for part in (part for part in few.cpu_us if part != "load" and max(few.cpu_us[part], many.cpu_us[part]) >= 1):
        lines.append(f"  {part:<22}{few.cpu_us[part]:>18,.0f}{many.cpu_us[part]:>18,.0f}")
    return [*lines, f"  {'all':<22}{few.total_us:>18,.0f}{many.total_us:>18,.0f}"]


def table(verdicts: Sequence[Verdict]) -> list[str]:
    """All verdicts, one a line; first what is asked, then whether it is so."""
    widths = {field: max((len(getattr(v, field)) for v in verdicts), default=0) for field in ("name", "found", "bar")}
    lines = []
    for v in verdicts:
        sign = "NO" if not v.met else "yes" if v.bar else ""
        cells = (f"{getattr(v, field):<{width}}" for field, width in widths.items())
        lines.append("  ".join((f"{sign:<3}", *cells, v.more)).rstrip())
    return lines


def counted(counts: Mapping[str, int]) -> str:
    """Answers by kind, most frequent first."""
    return ", ".join(f"{count:,} × {kind}" for kind, count in sorted(counts.items(), key=lambda item: -item[1]))
