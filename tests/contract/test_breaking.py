"""A client that was built from the last release must still work.

protos/baseline.binpb is the contract of the last release; `python protos/generate.py --baseline` renews it with a
release. `buf breaking` compares messages, fields, enums and methods. The rules here are those that buf does not have:
access options, callers, REST routes, and fields that become required.
"""

import json
import re
from collections.abc import Callable, Iterator

import generate
import lint
import pytest
from google.api import annotations_pb2, field_behavior_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

from buf.validate import validate_pb2
from stampede.access.v1 import access_pb2

BASELINE = FileDescriptorSet.FromString(generate.BASELINE.read_bytes())

DELIBERATE = {
    "stampede.type.v1.Money.minor_units": "an amount that a client misspelt was 0",
    "stampede.inventory.v1.CreateFlashSaleRequest.per_customer_limit": "a limit that a client misspelt was none",
    "stampede.inventory.v1.CreateFlashSaleRequest.start_time": "a sale whose start was misspelt opened at once",
}
"""Fields that clients must send since the last release, and why. Their wire format is as before.

Renewing the baseline empties it."""
_NOW_REQUIRED = re.compile(r"(.+) is required now")
_HAS_PRESENCE = re.compile(
    r'name "(\w+)" on message "(\w+)" changed cardinality .* to "optional with explicit presence"'
)


def promises(files: FileDescriptorSet) -> dict[str, object]:
    """Return {promise of a method: its value}. A changed or missing value breaks clients."""
    found: dict[str, object] = {}
    for file in files.file:
        for service in file.service:
            for method in service.method:
                name, options = f"{file.package}.{service.name}.{method.name}", method.options.Extensions
                rule = options[annotations_pb2.http]
                found[f"{name} access"] = access_pb2.Access.Name(options[access_pb2.access])
                found[f"{name} route"] = rule.SerializeToString(deterministic=True)
                found |= {f"{name} accepts {caller}": True for caller in options[access_pb2.callers]}
    return found


def messages(prefix: str, tops: Iterator[DescriptorProto]) -> Iterator[tuple[str, DescriptorProto]]:
    for message in tops:
        yield f"{prefix}.{message.name}", message
        yield from messages(f"{prefix}.{message.name}", iter(message.nested_type))


def required_fields(files: FileDescriptorSet) -> dict[str, set[str]]:
    """Return {message: fields that a client must send}."""
    return {
        name: {
            field.name
            for field in message.field
            if field.options.Extensions[validate_pb2.field].required
            or field_behavior_pb2.REQUIRED in field.options.Extensions[field_behavior_pb2.field_behavior]
        }
        for file in files.file
        for name, message in messages(file.package, iter(file.message_type))
    }


def broken(before: FileDescriptorSet, now: FileDescriptorSet) -> list[str]:
    """Return the promises of `before` that `now` breaks, except those that buf reports."""
    kept, required = promises(now), required_fields(now)
    return [promise for promise, value in promises(before).items() if kept.get(promise) != value] + [
        f"{message}.{field} is required now"
        for message, fields in required_fields(before).items()
        for field in required.get(message, set()) - fields
    ]


def is_deliberate(break_: str) -> bool:
    """Return whether `break_`, of buf or of `broken`, is that a field of `DELIBERATE` must be sent."""
    if required := _NOW_REQUIRED.fullmatch(break_):
        return required[1] in DELIBERATE
    if present := _HAS_PRESENCE.search(json.loads(break_)["message"] if break_.startswith("{") else ""):
        return any(name.endswith(f".{present[2]}.{present[1]}") for name in DELIBERATE)
    return False


def test_contract_breaks_no_client_but_where_it_means_to() -> None:
    breaks = lint.breaking_changes(BASELINE, lint.current()) + broken(BASELINE, lint.current())
    assert [break_ for break_ in breaks if not is_deliberate(break_)] == []


def test_every_deliberate_break_is_one() -> None:
    assert {f"{name} is required now" for name in DELIBERATE} <= set(broken(BASELINE, lint.current()))


# Both checks, on copies of the baseline with deliberate breaks.


@pytest.fixture
def copy() -> FileDescriptorSet:
    made = FileDescriptorSet()
    made.CopyFrom(BASELINE)
    return made


def file_of(files: FileDescriptorSet, name: str) -> FileDescriptorProto:
    return next(file for file in files.file if file.name == f"stampede/{name}.proto")


def message_of(file: FileDescriptorProto, name: str) -> DescriptorProto:
    return next(message for message in file.message_type if message.name == name)


def create_product(files: FileDescriptorSet) -> MethodDescriptorProto:
    return file_of(files, "catalog/v1/catalog_service").service[0].method[0]


def test_buf_reports_each_kind_of_break(copy: FileDescriptorSet) -> None:
    catalog, sales = (file_of(copy, name) for name in ("catalog/v1/catalog_service", "inventory/v1/flash_sale_service"))
    product = message_of(catalog, "Product")
    product.field[1].name = "article"
    product.field[2].json_name = "path"
    product.field[3].number = 77
    product.field[4].type = product.field[4].TYPE_BYTES
    message_of(sales, "FlashSale").enum_type[0].value[2].name = "OPEN"
    catalog.service[0].method[0].output_type = ".stampede.catalog.v1.ListProductsResponse"
    del catalog.service[0].method[-1], catalog.message_type[-1]  # DeactivateProduct and its request
    reported = {json.loads(line)["type"] for line in lint.breaking_changes(BASELINE, copy)}
    assert reported >= {
        "FIELD_SAME_NAME", "FIELD_SAME_JSON_NAME", "FIELD_NO_DELETE", "FIELD_SAME_TYPE", "ENUM_VALUE_SAME_NAME",
        "RPC_SAME_RESPONSE_TYPE", "RPC_NO_DELETE", "MESSAGE_NO_DELETE",
    }  # fmt: skip


def open_method_to_all(files: FileDescriptorSet) -> None:
    create_product(files).options.Extensions[access_pb2.access] = access_pb2.ACCESS_PUBLIC


def remove_caller(files: FileDescriptorSet) -> None:
    snapshots = file_of(files, "catalog/v1/snapshot_service")
    del snapshots.service[0].method[0].options.Extensions[access_pb2.callers][0]


def move_route(files: FileDescriptorSet) -> None:
    create_product(files).options.Extensions[annotations_pb2.http].post = "/v1/goods"


def require_new_field(files: FileDescriptorSet) -> None:
    request = message_of(file_of(files, "catalog/v1/catalog_service"), "CreateProductRequest")
    field = request.field.add(name="brand", json_name="brand", number=50, type=9, label=1)
    field.options.Extensions[validate_pb2.field].required = True


@pytest.mark.parametrize(
    ("change", "promise"),
    [
        (open_method_to_all, "stampede.catalog.v1.CatalogService.CreateProduct access"),
        (remove_caller, "stampede.catalog.v1.SnapshotService.GetSnapshots accepts orders"),
        (move_route, "stampede.catalog.v1.CatalogService.CreateProduct route"),
        (require_new_field, "stampede.catalog.v1.CreateProductRequest.brand is required now"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_own_rules_report_each_kind_of_break(
    copy: FileDescriptorSet, change: Callable[[FileDescriptorSet], None], promise: str
) -> None:
    change(copy)
    assert broken(BASELINE, copy) == [promise]


def test_new_fields_and_methods_break_nothing(copy: FileDescriptorSet) -> None:
    catalog = file_of(copy, "catalog/v1/catalog_service")
    message_of(catalog, "Product").field.add(name="brand", json_name="brand", number=50, type=9, label=1)
    catalog.service[0].method.add().CopyFrom(catalog.service[0].method[1])
    catalog.service[0].method[-1].name = "RateProduct"
    assert broken(BASELINE, copy) == []
    assert lint.breaking_changes(BASELINE, copy) == []
