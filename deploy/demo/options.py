"""The options of the demo."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_DOC = """\
Run a flash sale through the gateway, with customers that have accounts, and check that it adds up.

Starts the mesh if it is not up, and stops it again afterwards. STAMPEDE_PORT and STAMPEDE_HOME choose the
mesh. Exit status: 0 adds up, 1 does not add up, 2 could not run, 130 interrupted by Ctrl-C.
"""
PER_CUSTOMER = 2
"""The customer limit of the sale."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of one demo."""

    buyers: int = 500
    attempts: int = 5_000
    units: int = 100
    decline_percent: float = 10.0
    connections: int = 128
    seed: int = 1
    keep: bool = False
    json: Path | None = None


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Reads the command line; exits with status 2 and the reason if it is invalid."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.demo", description=_DOC, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shown = "(default: %(default)s)"
    for name, least, most, meaning in (
        ("buyers", 1, 100_000, "customers who sign up before the sale opens"),
        ("attempts", 1, 10_000_000, "orders that they try to place, in total"),
        ("units", 1, 1_000_000, "units on sale"),
        ("connections", 1, 4_096, "concurrent attempts"),
    ):
        default = getattr(Options, name)
        parser.add_argument(
            f"--{name}", type=_whole(least, most), default=default, metavar="N", help=f"{meaning} {shown}"
        )
    parser.add_argument(
        "--decline-percent", type=_percent, default=Options.decline_percent, metavar="P",
        help=f"percentage of cards that the bank declines {shown}",
    )  # fmt: skip
    parser.add_argument(
        "--seed",
        type=int,
        default=Options.seed,
        metavar="N",
        help=f"seed of the attempts' order and cards {shown}",
    )
    parser.add_argument("--keep", action="store_true", help="leave the mesh up, even if the demo started it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report to this file")
    options = Options(**vars(parser.parse_args(arguments)))
    if options.json and not options.json.absolute().parent.is_dir():
        # Checked now, not after the sale.
        parser.error(f"--json: no such folder: {options.json.absolute().parent}")
    return options


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text.replace("_", "").replace(",", ""))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"must be {least:,} to {most:,}")
        return number

    return read


def _percent(text: str) -> float:
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError("must be 0 to 100")
    return number
