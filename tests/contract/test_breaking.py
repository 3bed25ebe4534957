"""A client built from the last release must still work.

The last release's contract is protos/baseline.binpb. Renew it with a release: `python protos/generate.py --baseline`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import generate
import pytest
from google.api import annotations_pb2, field_behavior_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet

from buf.validate import validate_pb2
from stampede.access.v1 import access_pb2

Facts = dict[str, Any]
BASELINE = FileDescriptorSet.FromString(generate.BASELINE.read_bytes())
CURRENT = FileDescriptorSet.FromString((generate.GEN / "gateway.binpb").read_bytes())


def shape(files: FileDescriptorSet) -> Facts:
    """Flattens descriptors into {what a client relies on: how it is}."""
    facts: Facts = {}
    for file in files.file:
        if file.package.startswith("stampede."):
            facts.update(methods(file))
            for prefix, message in nested(file.package, file.message_type):
                facts.update(fields(prefix, message))
                facts.update(enums(prefix, message.enum_type))
            facts.update(enums(file.package, file.enum_type))
    return facts


def methods(file: FileDescriptorProto) -> Iterator[tuple[str, Any]]:
    for service in file.service:
        for method in service.method:
            name = f"{file.package}.{service.name}.{method.name}"
            options = method.options.Extensions
            yield name, (method.input_type, method.output_type, method.client_streaming, method.server_streaming)
            yield f"{name} access", access_pb2.Access.Name(options[access_pb2.access])
            rule = options[annotations_pb2.http]
            yield f"{name} route", (rule.WhichOneof("pattern"), rule.SerializeToString(deterministic=True))
            for caller in options[access_pb2.callers]:
                yield f"{name} lets {caller} in", True


def fields(prefix: str, message: DescriptorProto) -> Iterator[tuple[str, Any]]:
    yield prefix, "message"
    for field in message.field:
        oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
        how = (field.name, field.json_name, field.type, field.type_name, field.label, oneof)
        yield f"{prefix}#{field.number}", how


def enums(prefix: str, kinds: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for enum in kinds:
        for value in enum.value:
            yield f"{prefix}.{enum.name}#{value.number}", value.name


def nested(prefix: str, messages: Iterable[DescriptorProto]) -> Iterator[tuple[str, DescriptorProto]]:
    for message in messages:
        yield f"{prefix}.{message.name}", message
        yield from nested(f"{prefix}.{message.name}", message.nested_type)


def demanded(files: FileDescriptorSet) -> dict[str, set[int]]:
    """The fields that a message must have, by the message's name."""
    found = {}
    for file in files.file:
        if not file.package.startswith("stampede."):
            continue
        for name, message in nested(file.package, file.message_type):
            found[name] = {
                field.number
                for field in message.field
                if field.options.Extensions[validate_pb2.field].required
                or field_behavior_pb2.REQUIRED in field.options.Extensions[field_behavior_pb2.field_behavior]
            }
    return found


def broken(before: FileDescriptorSet, now: FileDescriptorSet) -> list[str]:
    """What a client built from `before` relies on and `now` no longer keeps."""
    was, is_ = shape(before), shape(now)
    changed = [fact for fact, how in was.items() if is_.get(fact) != how]
    wanted_before, wanted_now = demanded(before), demanded(now)
    return changed + [
        f"{message}#{number} is required now"
        for message, numbers in wanted_before.items()
        for number in wanted_now.get(message, set()) - numbers
    ]


def test_nothing_a_client_relies_on_has_changed() -> None:
    assert not broken(BASELINE, CURRENT)


# That the test above would notice: each of these is done to a copy of the baseline.


def catalog(files: FileDescriptorSet) -> FileDescriptorProto:
    return next(file for file in files.file if file.name == "stampede/catalog/v1/catalog_service.proto")


def product(files: FileDescriptorSet) -> DescriptorProto:
    return next(message for message in catalog(files).message_type if message.name == "Product")


def drop_a_method(files: FileDescriptorSet) -> None:
    del catalog(files).service[0].method[0]


def open_a_method_to_all(files: FileDescriptorSet) -> None:
    catalog(files).service[0].method[0].options.Extensions[access_pb2.access] = access_pb2.ACCESS_PUBLIC


def move_a_route(files: FileDescriptorSet) -> None:
    catalog(files).service[0].method[0].options.Extensions[annotations_pb2.http].post = "/v1/goods"


def rename_a_field(files: FileDescriptorSet) -> None:
    product(files).field[1].name = "article"


def rename_a_field_in_json(files: FileDescriptorSet) -> None:
    product(files).field[1].json_name = "article"


def renumber_a_field(files: FileDescriptorSet) -> None:
    product(files).field[1].number = 77


def retype_a_field(files: FileDescriptorSet) -> None:
    product(files).field[1].type = 12


def demand_a_new_field(files: FileDescriptorSet) -> None:
    request = next(m for m in catalog(files).message_type if m.name == "CreateProductRequest")
    new = request.field.add(name="brand", json_name="brand", number=50, type=9, label=1)
    new.options.Extensions[validate_pb2.field].required = True


def rename_a_value(files: FileDescriptorSet) -> None:
    sales = next(file for file in files.file if file.name == "stampede/inventory/v1/flash_sale_service.proto")
    next(m for m in sales.message_type if m.name == "FlashSale").enum_type[0].value[2].name = "OPEN"


def shut_a_caller_out(files: FileDescriptorSet) -> None:
    snapshots = next(file for file in files.file if file.name == "stampede/catalog/v1/snapshot_service.proto")
    del snapshots.service[0].method[0].options.Extensions[access_pb2.callers][0]


@pytest.mark.parametrize(
    "breaks",
    [
        drop_a_method, open_a_method_to_all, move_a_route, rename_a_field, rename_a_field_in_json, renumber_a_field,
        retype_a_field, demand_a_new_field, rename_a_value, shut_a_caller_out,
    ],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_a_breaking_change_is_noticed(breaks: Callable[[FileDescriptorSet], None]) -> None:
    changed = FileDescriptorSet()
    changed.CopyFrom(BASELINE)
    breaks(changed)
    assert broken(BASELINE, changed)


def test_growing_breaks_nothing() -> None:
    grown = FileDescriptorSet()
    grown.CopyFrom(BASELINE)
    product(grown).field.add(name="brand", json_name="brand", number=50, type=9, label=1)
    catalog(grown).service[0].method.add(name="RateProduct")
    assert not broken(BASELINE, grown)
