"""Field masks: the fields that an update changes."""

from collections.abc import Collection

from services.chassis.errors import InvalidFields


def select_fields(
    paths: Collection[str], given: Collection[str], *, mutable: frozenset[str], required: frozenset[str]
) -> frozenset[str]:
    """Returns the fields to change if the mask names `paths` and the request sets `given`.

    An empty mask means all fields that are set, `*` all mutable fields. A field that is named and not set gets its
    default. Raises `InvalidFields` for what cannot be obeyed: no field to change, a field that is set and not named,
    one that is named and not `mutable`, and a `required` one that is named and not set.
    """
    content = mutable.intersection(given)
    if not paths:
        if not content:
            raise InvalidFields({"updateMask": "names no field, and no field that can be changed is set"})
        return content
    unknown = sorted(set(paths) - mutable - {"*"})
    if unknown:
        raise InvalidFields({"updateMask": f"names {unknown[0][:64]!r}, which is not a field that can be changed"})
    fields = mutable if "*" in paths else frozenset(paths)
    if unnamed := sorted(content - fields):
        raise InvalidFields(dict.fromkeys(map(json_name, unnamed), "is set and not named by the update mask"))
    missing = sorted((fields & required) - set(given))
    if missing:
        raise InvalidFields(dict.fromkeys(map(json_name, missing), "is named by the update mask and must be set"))
    return fields


def json_name(field: str) -> str:
    """Returns the name of a field as JSON has it, for example `productId`."""
    head, *rest = field.split("_")
    return head + "".join(map(str.capitalize, rest))
