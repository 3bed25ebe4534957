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


def beside(ours: Measured, theirs: Measured, bar: float) -> Verdict:
    """Holds our rate to so many times somebody else's."""
    factor, rates = ours.per_second / theirs.per_second, f"{ours.per_second:,.0f}/s of {theirs.per_second:,.0f}/s"
    cpu = f"{ours.total_us / 1000:.1f} CPU-ms of {theirs.total_us / 1000:.1f}"
    return Verdict(
        f"{ours.name}, to a {theirs.name}", f"{factor:.1f} ×", f"at least {bar:.0f} ×", factor >= bar, f"{rates}, {cpu}"
    )


def shared(row: Measured, alone: Measured, bar: float, by: str) -> Verdict:
    """Holds a row's rate to a share of what it is `alone`."""
    share, rates = row.per_second / alone.per_second, f"{row.per_second:,.0f}/s of {alone.per_second:,.0f}/s"
    more = f"{rates}, {row.total_us / alone.total_us:.2f} × its CPU"
    return Verdict(f"{row.name} by {by}", f"{share:.0%}", f"at least {bar:.0%}", share >= bar, more)


def middle(pairs: Sequence[tuple[Measured, Measured]]) -> tuple[Measured, Measured]:
    """The pair whose ratio of rates lies in the middle."""
    return sorted(pairs, key=lambda pair: pair[0].per_second / pair[1].per_second)[len(pairs) // 2]


def side_by_side(few: Measured, many: Measured) -> list[str]:
    """CPU microseconds per held unit by process, at both numbers of connections."""
    return columns("CPU µs per held unit", {f"{row.connections} connections": row for row in (few, many)})


def columns(what: str, rows: Mapping[str, Measured]) -> list[str]:
    """CPU microseconds by process, a column for each row."""
    lines = [f"{what:<24}" + "".join(f"{name:>18}" for name in rows)]
    for part in dict.fromkeys(part for row in rows.values() for part in row.cpu_us if part != "load"):
        costs = [row.cpu_us.get(part, 0.0) for row in rows.values()]
        if max(costs) >= 1:
            lines.append(f"  {part:<22}" + "".join(f"{us:>18,.0f}" for us in costs))
    return [*lines, f"  {'all':<22}" + "".join(f"{row.total_us:>18,.0f}" for row in rows.values())]


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
