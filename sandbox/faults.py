"""Faults of a payment provider, which tests and operators switch on."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from sandbox.rows import Json
from sandbox.wire.errors import invalid

NEXT_MAX = 1_000_000
DELAY_MS_MAX = 600_000


class Switch:
    """A fault that fires the next N times, or with a probability and a seed; off by default."""

    __slots__ = ("_chance", "_left", "_random", "_value")

    def __init__(self, value: Any = None) -> None:
        self._value = value
        self._left = 0
        self._chance = 0.0
        self._random = random.Random(0)  # noqa: S311 - chance for tests, repeatable by its seed
        match value:
            case None | False:
                pass
            case True:
                self._chance = 1.0
            case int() if 0 <= value <= NEXT_MAX:
                self._left = value
            case float() if 0 <= value <= 1:
                self._chance = value
            case {"next": int(left), **rest} if 0 <= left <= NEXT_MAX and not rest:
                self._left = left
            case {"probability": int() | float() as chance, **rest} if 0 <= chance <= 1 and set(rest) <= {"seed"}:
                self._chance = float(chance)
                self._random.seed(str(rest.get("seed", 0)))
            case _:
                raise invalid(
                    'A fault is true, false, a count, a probability below one, {"next": N} '
                    'or {"probability": P, "seed": S}.'
                )

    def fires(self) -> bool:
        if self._left:
            self._left -= 1
            return True
        return self._chance > 0 and self._random.random() < self._chance

    def shown(self) -> Any:
        """The setting; of a count, how many are left."""
        if isinstance(self._value, (int, dict)) and not isinstance(self._value, bool) and not self._chance:
            return {"next": self._left}
        return self._value or False


@dataclass(slots=True)
class WebhookFaults:
    """Faults of the delivery of webhooks."""

    delay_ms: int = 0
    duplicate: Switch = field(default_factory=Switch)
    reorder: Switch = field(default_factory=Switch)
    drop: Switch = field(default_factory=Switch)

    def change(self, wanted: Json) -> None:
        for name, value in wanted.items():
            if name == "delay_ms":
                self.delay_ms = milliseconds(value)
            elif name in ("duplicate", "reorder", "drop"):
                setattr(self, name, Switch(value))
            else:
                raise invalid(f"Unknown webhook fault: {name}")


# Each fires for every operation, unless its `…_on` names one, such as `POST refunds`.
_OF_OPERATIONS = ("rate_limit_429", "error_500", "drop_request", "drop_answer", "latency")
_SWITCHES = (
    *_OF_OPERATIONS[:-1], "drop_after_charge", "drop_after_refund", "drop_after_order", "late_fee", "pending_refunds",
)  # fmt: skip


@dataclass(slots=True)
class Faults:
    """All faults. `change` changes only the ones it is given; a restart switches all off."""

    latency_ms: int = 0
    jitter_ms: int = 0
    error_500_saved: bool = False
    webhooks: WebhookFaults = field(default_factory=WebhookFaults)
    _switches: dict[str, Switch] = field(default_factory=lambda: {name: Switch() for name in _SWITCHES})
    _on: dict[str, str] = field(default_factory=lambda: dict.fromkeys(_OF_OPERATIONS, ""))
    _random: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311

    def change(self, wanted: Any) -> None:
        """Applies a JSON object of faults. Raises `Refusal` for an unknown or invalid one."""
        if not isinstance(wanted, dict):
            raise invalid("Faults are a JSON object.")
        for name, value in wanted.items():
            if name == "latency_ms":
                spread = value if isinstance(value, dict) else {"fixed": value}
                self.latency_ms = milliseconds(spread.get("fixed", 0))
                self.jitter_ms = milliseconds(spread.get("jitter", 0))
            elif name == "error_500":
                setting = dict(value) if isinstance(value, dict) else value
                self.error_500_saved = isinstance(setting, dict) and setting.pop("saved", False) is True
                self._switches[name] = Switch(setting)
            elif name in self._switches:
                self._switches[name] = Switch(value)
            elif name.removesuffix("_on") in self._on and isinstance(value, str):
                self._on[name.removesuffix("_on")] = value
            elif name == "webhooks" and isinstance(value, dict):
                self.webhooks.change(value)
            else:
                raise invalid(f"Unknown fault: {name}")

    def clear(self, *, latency_ms: int) -> None:
        """Switches all faults off; the latency becomes `latency_ms`."""
        self.change(
            {
                "latency_ms": latency_ms,
                "webhooks": {"delay_ms": 0, "duplicate": False, "reorder": False, "drop": False},
                **dict.fromkeys(self._switches, False),
                **{f"{name}_on": "" for name in self._on},
            }
        )

    def fires(self, name: str, operation: str) -> bool:
        """Whether a fault hits this call of `operation`: a method and the kind of object."""
        return self._on[name] in ("", operation) and self._switches[name].fires()

    def latency_s(self, operation: str = "") -> float:
        """The delay of one request, in seconds."""
        if not self.latency_ms and not self.jitter_ms:
            return 0.0
        if self._on["latency"] not in ("", operation):
            return 0.0
        return (self.latency_ms + self._random.random() * self.jitter_ms) / 1000

    def drops_answer(self, effects: set[str], operation: str = "") -> bool:
        """Whether the answer of this call, which had these effects, is dropped."""
        after = any(f"drop_after_{effect}" in _SWITCHES and self._drops_after(effect) for effect in sorted(effects))
        return after or self.fires("drop_answer", operation)

    def pending_refund(self) -> bool:
        """Whether this refund waits for a decision."""
        return self._switches["pending_refunds"].fires()

    def late_fee(self) -> bool:
        """Whether the provider says later what this charge cost."""
        return self._switches["late_fee"].fires()

    def shown(self) -> Json:
        hooks = self.webhooks
        return {
            "latency_ms": {"fixed": self.latency_ms, "jitter": self.jitter_ms},
            "error_500_saved": self.error_500_saved,
            **{name: switch.shown() for name, switch in self._switches.items()},
            **{f"{name}_on": operation for name, operation in self._on.items()},
            "webhooks": {
                "delay_ms": hooks.delay_ms,
                "duplicate": hooks.duplicate.shown(),
                "reorder": hooks.reorder.shown(),
                "drop": hooks.drop.shown(),
            },
        }

    def _drops_after(self, effect: str) -> bool:
        return self._switches[f"drop_after_{effect}"].fires()


def milliseconds(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= DELAY_MS_MAX:
        raise invalid(f"A time is a whole number of milliseconds from 0 to {DELAY_MS_MAX}.")
    return value
