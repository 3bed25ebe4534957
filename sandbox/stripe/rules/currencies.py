"""The currencies, and how many minor units make one major unit."""

from __future__ import annotations

from sandbox.stripe.errors import invalid

_TWO_DECIMAL = (
    "usd aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bmd bnd bob brl bsd bwp byn bzd "
    "cad cdf chf cny cop crc cve czk dkk dop dzd egp etb eur fjd fkp gbp gel gip gmd gtq gyd hkd "
    "hnl hrk htg huf idr ils inr isk jmd kes kgs khr kyd kzt lak lbp lkr lrd lsl mad mdl mkd mmk "
    "mnt mop mro mur mvr mwk mxn myr mzn nad ngn nio nok npr nzd pab pen pgk php pkr pln qar ron "
    "rsd rub sar sbd scr sek sgd shp sle sos srd std szl thb tjs top try ttd twd tzs uah ugx uyu "
    "uzs wst xcd yer zar zmw"
)
_ZERO_DECIMAL = "bif clp djf gnf jpy kmf krw mga pyg rwf vnd vuv xaf xof xpf"

ZERO_DECIMAL = frozenset(_ZERO_DECIMAL.split())
THREE_DECIMAL = frozenset(("bhd", "jod", "kwd", "omr", "tnd"))
CURRENCIES = ZERO_DECIMAL | THREE_DECIMAL | frozenset(_TWO_DECIMAL.split())

# Amounts must be a multiple of this: networks settle three-decimal currencies to two places, and two currencies
# lost their minor unit but kept the notation.
AMOUNT_STEP = {**dict.fromkeys(THREE_DECIMAL, 10), "isk": 100, "ugx": 100}


def readable(amount: int, currency: str) -> str:
    """An amount in major units, for messages."""
    places = 0 if currency in ZERO_DECIMAL else 3 if currency in THREE_DECIMAL else 2
    if not places:
        return f"{amount} {currency}"
    whole, rest = divmod(amount, 10**places)
    return f"{whole}.{rest:0{places}d} {currency}"


# Eight digits, whatever the currency.
AMOUNT_MAX = 99_999_999
# The smallest charge, where Stripe's table has the currency. Elsewhere it depends on the day's rate, and is 1 here.
_LEAST = {
    "usd": 50, "aed": 200, "aud": 50, "brl": 50, "cad": 50, "chf": 50, "czk": 1500, "dkk": 250, "eur": 50, "gbp": 30,
    "hkd": 400, "huf": 17500, "inr": 50, "jpy": 50, "mxn": 1000, "myr": 200, "nok": 300, "nzd": 50, "pln": 200,
    "ron": 200, "sek": 300, "sgd": 50, "thb": 1000,
}  # fmt: skip


def check_currency(currency: str, param: str = "currency") -> str:
    if currency not in CURRENCIES:
        raise invalid(
            f"Invalid currency: {currency[:20]}. Stripe currently supports these currencies: "
            f"{', '.join(sorted(CURRENCIES))}",
            param=param,
        )
    return currency


def check_amount(amount: int, currency: str, param: str = "amount") -> None:
    """Refuses an amount that Stripe refuses for this currency."""
    if amount > AMOUNT_MAX:
        message = f"Amount must be no more than {readable(AMOUNT_MAX, currency)}"
        raise invalid(message, param=param, code="amount_too_large")
    step = AMOUNT_STEP.get(currency, 1)
    if amount % step:
        raise invalid(f"Invalid amount: amounts in {currency} must be evenly divisible by {step}.", param=param)
    least = _LEAST.get(currency, 1)
    if amount < least:
        message = f"Amount must be at least {readable(least, currency)}"
        raise invalid(message, param=param, code="amount_too_small")
