"""The slots of one process for concurrent sagas, and the sagas that may fill them."""

import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from services.orders.saga.plan import Saga

OPENING_EACH_MOST = 8
"""So many payments of one customer are opened at once: further ones wait in the table, behind those of others."""


class Free(NamedTuple):
    """How many more sagas may run."""

    all: int
    provider_bound: int
    """Of these, so many may be provider-bound."""
    opening: int
    """Of the provider-bound ones, so many may open a payment that nobody pays yet."""


class Slots:
    """A bounded number of sagas at once; the others wait in the table.

    A quarter of the slots is kept from provider-bound sagas, so that a slow provider does not delay sagas whose payment
    has succeeded or that turn back. A half is kept from sagas that open a payment, so that they never delay a charge.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._provider_bound_most = most - most // 4
        self._opening_most = min(max(most // 4, 1), most)
        self._running = self._provider_bound = self._opening = 0
        self._opening_of = Counter[uuid.UUID]()

    @property
    def free(self) -> Free:
        free = max(self.most - self._running, 0)
        provider_bound = min(max(self._provider_bound_most - self._provider_bound, 0), free)
        return Free(free, provider_bound, min(max(self._opening_most - self._opening, 0), provider_bound))

    @property
    def crowded(self) -> list[uuid.UUID]:
        """The customers of whom no further payment may be opened now."""
        return [customer for customer, opening in self._opening_of.items() if opening >= OPENING_EACH_MOST]

    def can_charge(self) -> bool:
        """Whether a saga that charges a card may begin."""
        return self.free.provider_bound > 0

    def can_open(self, customer_id: uuid.UUID | None = None) -> bool:
        """Whether a saga that opens a payment may begin: another one of this customer, where given."""
        is_crowded = customer_id is not None and self._opening_of[customer_id] >= OPENING_EACH_MOST
        return self.free.opening > 0 and not is_crowded

    @contextmanager
    def taken(
        self, *, provider_bound: bool = True, opening: bool = False, customer_id: uuid.UUID | None = None
    ) -> Iterator[None]:
        """Takes a slot until the block ends, also if none is free."""
        self._running += 1
        self._provider_bound += provider_bound
        self._opening += opening
        if customer_id:
            self._opening_of[customer_id] += opening
        try:
            yield
        finally:
            self._running -= 1
            self._provider_bound -= provider_bound
            self._opening -= opening
            if customer_id:
                self._opening_of[customer_id] -= opening
                if not self._opening_of[customer_id]:
                    del self._opening_of[customer_id]

    @contextmanager
    def taken_by(self, saga: Saga) -> Iterator[None]:
        """Takes a slot for `saga` until the block ends, also if none is free."""
        with self.taken(provider_bound=saga.provider_bound, opening=saga.opens_payment, customer_id=saga.customer_id):
            yield
