"""Shows progress: a live panel on a terminal, otherwise a line a second."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deploy.demo.tally import Tally

_REFRESH_A_SECOND = 8
_LINE_SECONDS = 1.0


class _Console(Console):
    """Continues without output when its reader is gone, as in `make demo | head`: the mesh must still be stopped."""

    def on_broken_pipe(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console() -> Console:
    """The console of the demo, with colours and cursor movement only on a terminal."""
    return _Console(highlight=False, soft_wrap=not sys.stdout.isatty())


@asynccontextmanager
async def progress(tally: Tally, screen: Console) -> AsyncIterator[None]:
    """Shows `tally` within the block."""
    if screen.is_terminal:
        live = Live(get_renderable=lambda: panel(tally), console=screen, refresh_per_second=_REFRESH_A_SECOND)
        with live:
            yield
        return
    task = asyncio.create_task(_lines(tally, screen))
    try:
        yield
    finally:
        task.cancel()


async def _lines(tally: Tally, screen: Console) -> None:
    shown, began = "", 0.0
    while True:
        # A new phase is printed at once, a phase that lasts each second.
        if tally.phase != shown or time.monotonic() - began >= _LINE_SECONDS:
            shown, began = tally.phase, time.monotonic()
            screen.print(line(tally), markup=False)
        await asyncio.sleep(0.1)


def line(tally: Tally) -> str:
    """The progress in one line of less than 80 characters."""
    text = tally.phase
    if tally.of:
        text += f" {tally.done}/{tally.of} {tally.per_second:.0f}/s"
    if tally.sale.messages:
        sale, refused = tally.sale, sum(tally.refused.values())
        text += f" left {sale.remaining} held {sale.held} sold {sale.sold}"
        text += f" declined {tally.declined} refused {refused} p99 {tally.recent()[1]:.0f} ms"
    return text


def panel(tally: Tally) -> RenderableType:
    """The progress as a panel for a terminal."""
    head = Text.assemble((tally.phase, "bold"), f"  {tally.done:,}/{tally.of:,} {tally.unit}" if tally.of else " …")
    if tally.of and tally.done:
        head.append(f"  {tally.per_second:,.0f}/s", style="dim")
    # In a table of its own: a bare progress bar ends without a line break.
    bar = Table.grid(expand=True)
    bar.add_row(ProgressBar(total=tally.of or 1, completed=tally.done, pulse=not tally.of))
    numbers = Table.grid(padding=(0, 2), expand=False)
    if tally.sale.messages:
        sale, (p50, p99) = tally.sale, tally.recent()
        numbers.add_row(
            "sale", f"[green]{sale.sold:,}[/] sold", f"[yellow]{sale.held:,}[/] held", f"{sale.remaining:,} left"
        )
        refused = sum(tally.refused.values())
        numbers.add_row(
            "orders",
            f"[green]{tally.paid.total():,}[/] paid",
            f"[red]{tally.declined:,}[/] declined",
            f"{refused:,} refused",
        )
        numbers.add_row("answers", f"p50 {p50:,.0f} ms", f"p99 {p99:,.0f} ms", "")
    return Panel(Group(head, bar, numbers), title="Stampede", title_align="left", border_style="cyan")
