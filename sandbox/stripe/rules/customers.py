"""The rules of customers."""

from __future__ import annotations

from sandbox.rows import Json, Work
from sandbox.stripe.book import StripeBook
from sandbox.stripe.errors import no_such
from sandbox.stripe.forms import Params
from sandbox.stripe.rows import Customer
from sandbox.stripe.rules import methods

FIELDS = ("email", "name", "phone", "description")
CREATE = frozenset((*FIELDS, "metadata", "expand"))


def create(work: Work, params: Params) -> Customer:
    params.only(CREATE)
    texts: Json = {name: params.text(name, longest=512) for name in FIELDS}
    made = Customer(id=work.new_id("cus"), created=work.now, metadata=params.metadata(), **texts)
    work.put(made, "customer.created")
    return made


def update(work: Work, customer: Customer, params: Params) -> Customer:
    params.only(CREATE)
    texts: Json = {name: params.text(name, longest=512) for name in FIELDS if name in params}
    metadata = {**customer.metadata, **params.metadata()} if "metadata" in params else customer.metadata
    changed = customer._replace(metadata=metadata, **texts)
    work.put(changed, "customer.updated")
    return changed


def delete(work: Work, book: StripeBook, customer: Customer) -> Customer:
    """Deletes a customer for good, and detaches their payment methods."""
    for identifier in book.methods_of.get(customer.id, ()):
        methods.detach(work, book.methods.rows[identifier])
    work.put(customer, "customer.deleted")
    gone = customer._replace(deleted=True)
    work.put(gone)
    return gone


def find(book: StripeBook, identifier: str, *, param: str = "id", status: int = 404, deleted: bool = False) -> Customer:
    """A customer; a deleted one only if `deleted`, as Stripe does when it is retrieved."""
    customer = book.customers.rows.get(identifier)
    if customer is None or (customer.deleted and not deleted):
        raise no_such("customer", identifier[:100], param=param, status=status)
    return customer
