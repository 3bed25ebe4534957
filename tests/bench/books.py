"""What the databases say of one sale after a rush, and whether it can be true."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from deploy.audit import Sources, fetch
from deploy.local import Site


@dataclass(frozen=True)
class Taken:
    """Units that one reservation takes from the sale."""

    customer_id: str
    state: str
    units: int


@dataclass(frozen=True, kw_only=True)
class Books:
    """The sale's counters, and the rows of those who got something."""

    allocation: int
    held: int
    sold: int
    returned: int
    reservations: Mapping[str, Taken]
    """By id; those that take units."""
    orders: Mapping[str, str]
    """Their customers, by id."""
    miscounted: int
    """Customers whose units the sale counts otherwise than their reservations do."""

    def __str__(self) -> str:
        rows = f"{len(self.reservations):,} reservations, {len(self.orders):,} orders"
        return f"{self.held:,} held, {self.sold:,} sold, {rows}"


def read(site: Site, sale_id: str) -> Books:
    """Reads inventory's and orders' databases."""
    with Sources.of(site).connections() as connections:
        inventory, orders = connections["inventory"], connections["orders"]
        [sale] = (sale for sale in fetch.sales(inventory) if sale.id == sale_id)
        return Books(
            allocation=sale.allocation,
            held=sale.held,
            sold=sale.sold,
            returned=sale.returned,
            reservations={
                row.id: Taken(row.customer_id, row.state, units)
                for row in fetch.reservations(inventory)
                if row.state in ("HELD", "CONFIRMED")
                and (units := sum(quantity for _, sale, quantity in row.lines if sale == sale_id))
            },
            orders={
                row.id: row.customer_id
                for row in fetch.orders(orders)
                if any(sale == sale_id for _, sale, _ in row.lines)
            },
            miscounted=sum(1 for row in fetch.allowances(inventory) if row.sale_id == sale_id),
        )


def problems(books: Books, *, allocation: int, wanted: int, limit: int) -> list[str]:
    """What is wrong, where `wanted` units must be taken and `limit` is a customer's most; 0 for any number."""
    found = []
    units, by_customer = Counter[str](), Counter[str]()
    for taken in books.reservations.values():
        units[taken.state] += taken.units
        by_customer[taken.customer_id] += taken.units
    if units.total() != wanted:
        found.append(f"reservations take {units.total():,} units, not {wanted:,}")
    if (books.held, books.sold) != (units["HELD"], units["CONFIRMED"]):
        found.append(
            f"the sale counts {books.held:,} held and {books.sold:,} sold,"
            f" reservations {units['HELD']:,} and {units['CONFIRMED']:,}"
        )
    if (books.allocation, books.returned) != (allocation, 0):
        found.append(f"{books.allocation:,} units are allocated, {books.returned:,} went back to stock")
    if limit and (over := sum(1 for count in by_customer.values() if count > limit)):
        found.append(f"{over:,} customers have more than {limit}")
    if books.miscounted:
        found.append(f"{books.miscounted:,} customers are miscounted")
    holders = {id_: taken.customer_id for id_, taken in books.reservations.items()}
    if lacking := holders.items() - books.orders.items():
        found.append(f"{len(lacking):,} reservations have no order of the same customer")
    if extra := books.orders.items() - holders.items():
        found.append(f"{len(extra):,} orders have no reservation of the same customer")
    return found
