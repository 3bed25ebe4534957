"""The currencies, and how many minor units make one major unit."""

from __future__ import annotations

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
