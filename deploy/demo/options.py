"""What can be asked of the demo."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_DOC = """\
Run a flash sale with real customers through the gateway, and prove that it adds up.

Brings the mesh up if it is not, and leaves it as it found it. STAMPEDE_PORT and STAMPEDE_HOME say which
mesh. Exit status: 0 adds up, 1 does not, 2 could not run, 130 stopped by Ctrl-C.
"""
PER_CUSTOMER = 2
"""What one customer may buy in the sale."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """One demo."""

    buyers: int = 500
    attempts: int = 5_000
    units: int = 100
    decline_percent: float = 10.0
    connections: int = 128
    seed: int = 1
    keep: bool = False
    json: Path | None = None


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Reads the command line. Exits with status 2, and says why, where it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.demo", description=_DOC, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shown = "(default: %(default)s)"
    for name, least, most, meaning in (
        ("buyers", 1, 100_000, "customers who sign up before the sale opens"),
        ("attempts", 1, 10_000_000, "orders they try to place, all together"),
        ("units", 1, 1_000_000, "units on sale"),
        ("connections", 1, 4_096, "attempts under way at once"),
    ):
        default = getattr(Options, name)
        parser.add_argument(
            f"--{name}", type=_whole(least, most), default=default, metavar="N", help=f"{meaning} {shown}"
        )
    parser.add_argument(
        "--decline-percent", type=_percent, default=Options.decline_percent, metavar="P",
        help=f"how many of the cards the bank declines {shown}",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=Options.seed, metavar="N", help=f"who comes when, and pays how {shown}"
    )
    parser.add_argument("--keep", action="store_true", help="leave the mesh up, even if it was started for this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there as well")
    options = Options(**vars(parser.parse_args(arguments)))
    if options.json and not options.json.absolute().parent.is_dir():
        # Said now rather than when all is over.
        parser.error(f"--json: there is no folder {options.json.absolute().parent}")
    return options


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text.replace("_", "").replace(",", ""))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"must be {least:,} to {most:,}")
        return number

    return read


def _percent(text: str) -> float:
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError("must be 0 to 100")
    return number
