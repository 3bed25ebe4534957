"""Types of fields in providers' objects. A field of another type is refused at the door."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.chassis.errors import InvalidFields

_ERRORS_SHOWN = 5

# Visible ASCII: PostgreSQL stores no NUL, and nothing here has a space.
Id = Annotated[str, Field(pattern=r"^[!-~]{1,255}$")]
Minor = Annotated[int, Field(ge=0, le=10**15)]
Currency = Annotated[str, Field(pattern=r"^[A-Za-z]{3}$")]
Seconds = Annotated[int, Field(ge=0, le=2**40)]
YEAR_9999 = 253_370_764_800
"""Later seconds are no time that PostgreSQL stores."""


class Typed(BaseModel):
    """The used fields of a provider's object, each with its own type: a number in quotes is no number."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


def unreadable(error: ValidationError) -> InvalidFields:
    """Return the wrong fields and what they must be. The values are left out: they may contain anything."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[:_ERRORS_SHOWN]
    return InvalidFields({".".join(map(str, one["loc"])) or "body": one["msg"] for one in found})
