"""Runs the demo from start to end; `deploy.demo.options` describes it."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from rich.console import Console

from deploy.audit import Sources, Unreachable, audit
from deploy.client import Json, Patience, Rest, RestError, User
from deploy.client.shop import ADMIN_EMAIL
from deploy.demo import report, screen, stage
from deploy.demo.options import Options, parse
from deploy.demo.rush import Rush
from deploy.demo.tally import Tally
from deploy.local import Site, control
from deploy.local.environment import forget_libraries

ADDS_UP, DOES_NOT_ADD_UP, NOT_RUN, INTERRUPTED = 0, 1, 2, 130
_STAFF_CONNECTIONS = 16


class CannotRun(Exception):
    """The demo cannot run; the message has the reason."""


def main() -> int:
    options, console = parse(), screen.console()
    forget_libraries(os.environ)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    site = Site.here()
    try:
        with _mesh(site, console, keep=options.keep):
            outcome = _play(site, options, console)
    except (CannotRun, RestError, Unreachable) as problem:
        print(f"could not run: {problem}", file=sys.stderr)
        print("`make status` shows the parts of the mesh, `make logs` their logs.", file=sys.stderr)
        return NOT_RUN
    except KeyboardInterrupt:
        console.print("interrupted; nothing was checked", style="yellow")
        return INTERRUPTED
    console.print(f"total time: {time.monotonic() - began:.0f} s", style="dim")
    _print(outcome, console)
    if options.json:
        options.json.write_text(json.dumps(report.as_json(outcome), indent=2) + "\n")
    return DOES_NOT_ADD_UP if outcome.broken else ADDS_UP


def _print(outcome: report.Outcome, console: Console) -> None:
    """Prints the report; its last line is the verdict."""
    for line in report.lines(outcome):
        sign = line.strip()[:1]
        style = {report.FINE: "green", report.WRONG: "red"}.get(sign, "bold" if line[:1].isalpha() else None)
        if line == report.verdict(outcome):
            style = "bold red" if outcome.broken else "bold green"
        console.print(line, style=style, markup=False)


@contextlib.contextmanager
def _mesh(site: Site, console: Console, *, keep: bool) -> Iterator[None]:
    """Starts the mesh unless it is up, and stops it after the block, unless `keep`. Raises `CannotRun`."""
    was_up = control.running(site) is not None
    if was_up:
        console.print(f"the mesh is up at {site.url}")
    else:
        console.print("the mesh is not up: starting it")
        code = control.up(site, lambda line: console.print(f"  {line}", style="dim", markup=False))
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            raise CannotRun("the mesh did not start; see its messages above")
    try:
        yield
    finally:
        if was_up or keep:
            console.print(f"the mesh stays up at {site.url}; `make down` stops it")
        else:
            console.print("stopping the mesh, because it was not up before; its data stays")
            with _without_interrupts():
                control.down(site)


def _play(site: Site, options: Options, console: Console) -> report.Outcome:
    tally = Tally()
    sale, stock, product_id, retries = asyncio.run(_rush(site, options, tally, console))
    console.print("auditing five databases and the payment provider …", style="dim")
    sources = Sources.of(site)
    return report.Outcome(
        options=options,
        tally=tally,
        sale=sale,
        stock=stock,
        own=audit(sources, products={product_id}),
        all=audit(sources),
        retries=retries,
    )


async def _rush(site: Site, options: Options, tally: Tally, console: Console) -> tuple[Json, Json, str, Counter[str]]:
    """Does all that goes through the gateway; returns the sale, the stock, the product's id and the retries."""
    async with (
        Rest.open(site.url, connections=options.connections) as opened,
        Rest.open(site.url, connections=_STAFF_CONNECTIONS) as for_staff,
        screen.progress(tally, console),
    ):
        rest = replace(opened, patience=Patience())
        # Another process may be starting the mesh.
        (await rest.get("/readyz")).expect()
        staff = await replace(for_staff, patience=Patience()).sign_in(User(ADMIN_EMAIL, site.secrets["admin"]))
        try:
            built = await stage.build(rest, staff, options, tally)
            await Rush(rest, staff, built, options, tally).run()
        except* RestError as problems:
            raise _first(problems) from None
        tally.begin("counting")
        sale = (await staff.get(f"/v1/flash-sales/{built.sale_id}")).expect().json
        stock = (await staff.get(f"/v1/stock/{built.product_id}")).expect().json
    return sale, stock, built.product_id, rest.retries


def _first(problems: BaseExceptionGroup[RestError]) -> RestError:
    """The first of many failures: concurrent tasks fail for the same reason."""
    inner: BaseException = problems
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    assert isinstance(inner, RestError)
    return inner


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ignores Ctrl-C, which would leave the mesh half stopped."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    sys.exit(main())
