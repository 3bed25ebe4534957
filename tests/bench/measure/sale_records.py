"""The database records of one sale after a rush, and the check that they are consistent."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from deploy.audit import Sources
from deploy.audit.reading import fetch
from deploy.local import Site


@dataclass(frozen=True)
class HeldUnits:
    """Units that one reservation takes from the sale."""

    customer_id: str
    state: str
    units: int


@dataclass(frozen=True, kw_only=True)
class SaleRecords:
    """The sale's counters, and its reservations and orders."""

    allocation: int
    held: int
    sold: int
    returned: int
    reservations: Mapping[str, HeldUnits]
    """By id; only those that take units."""
    orders: Mapping[str, str]
    """Customer ids by order id."""
    miscounted: int
    """Customers whose unit count in the sale differs from their reservations."""

    def __str__(self) -> str:
        rows = f"{len(self.reservations):,} reservations, {len(self.orders):,} orders"
        return f"{self.held:,} held, {self.sold:,} sold, {rows}"


def read(site: Site, sale_id: str) -> SaleRecords:
    """Read the sale's records from inventory's and orders' databases."""
    with Sources.of(site).connections() as connections:
        inventory, orders = connections["inventory"], connections["orders"]
        [sale] = (sale for sale in fetch.sales(inventory) if sale.id == sale_id)
        return SaleRecords(
            allocation=sale.allocation,
            held=sale.held,
            sold=sale.sold,
            returned=sale.returned,
            reservations={
                row.id: HeldUnits(row.customer_id, row.state, units)
                for row in fetch.reservations(inventory)
                if row.state in ("HELD", "CONFIRMED")
                and (units := sum(quantity for _, sale, quantity in row.lines if sale == sale_id))
            },
            orders={
                row.id: row.customer_id
                for row in fetch.orders(orders)
                if any(sale == sale_id for _, sale, _ in row.lines)
            },
            miscounted=sum(1 for row in fetch.customer_units(inventory) if row.sale_id == sale_id),
        )


def problems(records: SaleRecords, *, allocation: int, wanted: int, limit: int) -> list[str]:
    """Return what is inconsistent, if `wanted` units must be taken and a customer may have `limit` (0: no limit)."""
    found = []
    units, by_customer = Counter[str](), Counter[str]()
    for taken in records.reservations.values():
        units[taken.state] += taken.units
        by_customer[taken.customer_id] += taken.units
    if units.total() != wanted:
        found.append(f"reservations take {units.total():,} units, not {wanted:,}")
    if (records.held, records.sold) != (units["HELD"], units["CONFIRMED"]):
        found.append(
            f"the sale counts {records.held:,} held and {records.sold:,} sold,"
            f" reservations {units['HELD']:,} and {units['CONFIRMED']:,}"
        )
    if (records.allocation, records.returned) != (allocation, 0):
        found.append(f"{records.allocation:,} units are allocated, {records.returned:,} went back to stock")
    if limit and (over := sum(1 for count in by_customer.values() if count > limit)):
        found.append(f"{over:,} customers have more than {limit}")
    if records.miscounted:
        found.append(f"{records.miscounted:,} customers are miscounted")
    holders = {id_: taken.customer_id for id_, taken in records.reservations.items()}
    if lacking := holders.items() - records.orders.items():
        found.append(f"{len(lacking):,} reservations have no order of the same customer")
    if extra := records.orders.items() - holders.items():
        found.append(f"{len(extra):,} orders have no reservation of the same customer")
    return found
