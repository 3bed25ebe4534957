"""The report: each measured number beside its bar."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tests.bench.measure.jobs import Measured


@dataclass(frozen=True)
class Verdict:
    """One number, its bar, and whether the number reaches the bar."""

    name: str
    found: str
    bar: str = ""
    """As printed; empty for a number without a bar."""
    met: bool = True
    more: str = ""


def against_e(row: Measured, e: Measured, bar: float | None, others: Mapping[str, int]) -> Verdict:
    """Compare a row's rate with that of its own E; unexpected answers in `others` fail it."""
    ratio = row.per_second / e.per_second
    more = f"{row.per_second:,.0f}/s of {e.per_second:,.0f}/s"
    if e.total_us:  # the CPU clock is coarse: a few requests may measure as 0
        more += f", {row.total_us / e.total_us:.2f} × its CPU"
    if others:
        more += f", but also {count_list(others)}"
    wanted = "" if bar is None else f"at least {bar:.2f} E"
    met = not others and (bar is None or ratio >= bar)
    return Verdict(f"{row.name}, {row.connections} connections", f"{ratio:.2f} E", wanted, met, more)


def without_gate(
    row: Measured, e: Measured, with_gate: tuple[Measured, Measured], others: Mapping[str, int]
) -> Verdict:
    """Report a row measured with the gate off beside the same row with it; it has no bar."""
    on, e_on = with_gate
    verdict = against_e(row, e, None, others)
    ratio = f"with the gate {on.per_second / e_on.per_second:.2f} E"
    cpu = f"{row.total_us:,.0f} µs of CPU, with the gate {on.total_us:,.0f}"
    return replace(verdict, more=f"{ratio}; {cpu}; {verdict.more}")


def cheaper(few: Measured, many: Measured) -> Verdict:
    """Require that CPU time per unit falls as connections rise."""
    return Verdict(
        f"CPU per held unit, {few.connections} → {many.connections} connections",
        f"{few.total_us:,.0f} → {many.total_us:,.0f} µs",
        "falls",
        many.total_us < few.total_us,
    )


def against_rival(ours: Measured, theirs: Measured, bar: float) -> Verdict:
    """Require our rate to be at least `bar` times a rival's."""
    factor, rates = ours.per_second / theirs.per_second, f"{ours.per_second:,.0f}/s of {theirs.per_second:,.0f}/s"
    cpu = f"{ours.total_us / 1000:.1f} CPU-ms of {theirs.total_us / 1000:.1f}"
    return Verdict(
        f"{ours.name}, to a {theirs.name}", f"{factor:.1f} ×", f"at least {bar:.0f} ×", factor >= bar, f"{rates}, {cpu}"
    )


def against_unwatched(row: Measured, alone: Measured, bar: float, by: str) -> Verdict:
    """Require a row's rate to be at least a share of its rate without watchers."""
    share, rates = row.per_second / alone.per_second, f"{row.per_second:,.0f}/s of {alone.per_second:,.0f}/s"
    more = f"{rates}, {row.total_us / alone.total_us:.2f} × its CPU"
    return Verdict(f"{row.name} by {by}", f"{share:.0%}", f"at least {bar:.0%}", share >= bar, more)


def bounded(row: Measured) -> Verdict:
    """Require that a full backlog places some orders, refuses the others with 429, and answers nothing else."""
    answers = row.result.answers
    name, met = f"{row.name}, {row.connections} connections", answers.keys() == {"200", "429 RATE_LIMITED"}
    cpu = f"{row.total_us:,.0f} µs of CPU an answer"
    return Verdict(name, count_list(answers), "200 and 429 only", met, f"{row.per_second:,.0f} answers/s, {cpu}")


def median_pair(pairs: Sequence[tuple[Measured, Measured]]) -> tuple[Measured, Measured]:
    """Return the pair with the median ratio of rates."""
    return sorted(pairs, key=lambda pair: pair[0].per_second / pair[1].per_second)[len(pairs) // 2]


def side_by_side(few: Measured, many: Measured) -> list[str]:
    """Return CPU microseconds per held unit by process, at both numbers of connections."""
    return columns("CPU µs per held unit", {f"{row.connections} connections": row for row in (few, many)})


def columns(title: str, rows: Mapping[str, Measured]) -> list[str]:
    """Return a table of CPU microseconds by process, with a column for each row."""
    lines = [f"{title:<24}" + "".join(f"{name:>18}" for name in rows)]
    for part in dict.fromkeys(part for row in rows.values() for part in row.cpu_us if part != "load"):
        costs = [row.cpu_us.get(part, 0.0) for row in rows.values()]
        if max(costs) >= 1:
            lines.append(f"  {part:<22}" + "".join(f"{us:>18,.0f}" for us in costs))
    return [*lines, f"  {'all':<22}" + "".join(f"{row.total_us:>18,.0f}" for row in rows.values())]


def table(verdicts: Sequence[Verdict]) -> list[str]:
    """Return all verdicts, one a line: bar reached, name, number, bar, details."""
    widths = {field: max((len(getattr(v, field)) for v in verdicts), default=0) for field in ("name", "found", "bar")}
    lines = []
    for v in verdicts:
        sign = "NO" if not v.met else "yes" if v.bar else ""
        cells = (f"{getattr(v, field):<{width}}" for field, width in widths.items())
        lines.append("  ".join((f"{sign:<3}", *cells, v.more)).rstrip())
    return lines


def count_list(counts: Mapping[str, int]) -> str:
    """Return answers by kind, most frequent first."""
    return ", ".join(f"{count:,} × {kind}" for kind, count in sorted(counts.items(), key=lambda item: -item[1]))
