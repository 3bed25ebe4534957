"""Rules of the contract, checked on its descriptors. Each test is one rule and lists all elements that break it.

buf checks casing, packages and the like (protos/lint.py); these are the rules that buf does not have.
"""

import importlib
import pkgutil
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import generate
import protovalidate
import pytest
from google.api import annotations_pb2, field_behavior_pb2
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet, MethodOptions
from google.rpc import code_pb2

import services
from buf.validate import validate_pb2
from services.chassis.errors import AppError
from stampede.access.v1 import access_pb2

ROOT = Path(__file__).parents[2]
VALIDATOR = protovalidate.Validator()
SERVICES = {path.parent.name for path in ROOT.glob("services/*/__main__.py")}

READS = re.compile(r"(Get|Check|List|Watch|Suggest|Export)([A-Z]|$)")
# Sign-in calls: each starts another session or uses a token; ending a session twice is no error.
WITHOUT_REQUEST_ID = {"Login", "Refresh", "Logout", "VerifyRazorpayPayment"}  # the last one is named by its fields
NOT_REPEATABLE = {"Login", "Refresh"}
# Providers sign the raw body, so it is parsed only after the signature is verified. Their events have ids.
RAW_BODY = re.compile(r"Receive\w+Webhook")
# A stock count replaces the whole value; the REST contract fixes it as a PUT.
PUTS = {"SetStock"}
# Integers of requests without both bounds, and why.
UNBOUNDED = {
    "page_size": "a larger value is taken as the largest page",
    "min_price": "every number is valid; above all prices the list is empty",
    "max_price": "see min_price",
}
SECRET = re.compile(r"(^|_)(password|secret|token|payment_method|email)(_|$)")
NO_SECRET = {"page_token", "next_page_token", "token_type", "email_verified"}
BEHAVIORS = {
    field_behavior_pb2.REQUIRED,
    field_behavior_pb2.OPTIONAL,
    field_behavior_pb2.IDENTIFIER,
    field_behavior_pb2.IMMUTABLE,
    field_behavior_pb2.OUTPUT_ONLY,
}
INTEGERS = {
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
}

for source in generate.sources():
    importlib.import_module(source.removesuffix(".proto").replace("/", ".") + "_pb2")
FILES = [descriptor_pool.Default().FindFileByName(source) for source in generate.sources()]
METHODS: list[MethodDescriptor] = [m for f in FILES for s in f.services_by_name.values() for m in s.methods]


def messages(tops: Iterable[Any]) -> Iterator[Any]:
    for message in tops:
        if not message.GetOptions().map_entry:
            yield message
            yield from messages(message.nested_types)


MESSAGES = [m for f in FILES for m in messages(f.message_types_by_name.values())]
ENUMS = [e for f in FILES for e in f.enum_types_by_name.values()] + [e for m in MESSAGES for e in m.enum_types]


def access(method: MethodDescriptor) -> int:
    return int(method.GetOptions().Extensions[access_pb2.access])


def is_mesh(method: MethodDescriptor) -> bool:
    return access(method) == access_pb2.ACCESS_MESH


def reachable(message: Any, found: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return `message` and our messages that it contains, by full name."""
    found = {} if found is None else found
    if message.full_name.startswith("stampede.") and message.full_name not in found:
        found[message.full_name] = message
        for field in message.fields:
            if field.message_type:
                reachable(field.message_type, found)
    return found


def reachable_from(tops: Iterable[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for message in tops:
        reachable(message, found)
    return found


REQUESTED = reachable_from(method.input_type for method in METHODS)
ANSWERED = reachable_from(method.output_type for method in METHODS)
# Without the entries of maps: their keys and values have rules of their own at the map.
REQUEST_FIELDS = [f for m in REQUESTED.values() if not m.GetOptions().map_entry for f in m.fields]
FIELDS = [field for message in MESSAGES for field in message.fields]
PUBLIC_METHODS = [method for method in METHODS if not is_mesh(method)]

T = TypeVar("T")


def offenders(elements: Iterable[T], keeps_rule: Callable[[T], object]) -> list[str]:
    """Return the full names of the elements that break a rule."""
    return [str(getattr(element, "full_name")) for element in elements if not keeps_rule(element)]  # noqa: B009


# Access


def test_every_method_declares_its_access() -> None:
    assert not offenders(METHODS, lambda method: access(method) != access_pb2.ACCESS_UNSPECIFIED)


def test_only_mesh_methods_name_callers_and_the_callers_exist() -> None:
    def keeps_rule(method: MethodDescriptor) -> bool:
        callers = set(method.GetOptions().Extensions[access_pb2.callers])
        return bool(callers) == is_mesh(method) and callers <= SERVICES - {method.full_name.split(".")[1]}

    assert not offenders(METHODS, keeps_rule)


def test_no_service_mixes_mesh_and_public_methods() -> None:
    """The gateway lists services, so a mesh method must not be in a service that is listed."""
    all_services = {method.containing_service.full_name: method.containing_service for method in METHODS}
    assert not offenders(all_services.values(), lambda service: len(set(map(is_mesh, service.methods))) == 1)


# Routes


def verb_and_path(method: MethodDescriptor) -> tuple[str, str]:
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern")
    return verb or "", getattr(rule, verb) if verb else ""


def test_public_methods_have_one_route_and_mesh_methods_none() -> None:
    def keeps_rule(method: MethodDescriptor) -> bool:
        _, path = verb_and_path(method)
        if is_mesh(method):
            return not path
        rule = method.GetOptions().Extensions[annotations_pb2.http]
        return path.startswith(("/v1/", "/.well-known/")) and not rule.additional_bindings

    assert not offenders(METHODS, keeps_rule)


def test_path_parameters_are_plain_fields_of_the_request() -> None:
    def keeps_rule(method: MethodDescriptor) -> bool:
        # `{a.b}` and `{a=b/*}` name no field.
        names = re.findall(r"\{([^}]*)\}", verb_and_path(method)[1])
        fields = [method.input_type.fields_by_name.get(name) for name in names]
        return all(f and f.type == FieldDescriptor.TYPE_STRING and not f.is_repeated for f in fields)

    assert not offenders(PUBLIC_METHODS, keeps_rule)


def test_http_verbs_follow_method_names() -> None:
    def keeps_rule(method: MethodDescriptor) -> bool:
        verb, _ = verb_and_path(method)
        body = method.GetOptions().Extensions[annotations_pb2.http].body
        return (
            (verb == "get") == bool(READS.match(method.name))
            and (verb == "patch") == method.name.startswith("Update")
            and (verb == "delete") == method.name.startswith("Delete")
            and (verb == "put") == (method.name in PUTS)
            and body == ("" if verb in ("get", "delete") else "*")
        )

    assert not offenders(PUBLIC_METHODS, keeps_rule)


def test_no_two_methods_share_a_route() -> None:
    routes = Counter((verb, re.sub(r"\{\w+\}", "{}", path)) for verb, path in map(verb_and_path, METHODS) if path)
    assert not [route for route, count in routes.items() if count > 1]


# Requests and answers


def test_requests_are_named_after_their_method() -> None:
    def keeps_rule(method: MethodDescriptor) -> bool:
        if RAW_BODY.fullmatch(method.name):
            return bool(method.input_type.full_name == "google.api.HttpBody")
        return bool(method.input_type.name == f"{method.name}Request")

    assert not offenders(METHODS, keeps_rule)


def test_public_mutations_take_a_request_id() -> None:
    def keeps_rule(method: MethodDescriptor) -> bool:
        if READS.match(method.name) or method.name in WITHOUT_REQUEST_ID or RAW_BODY.fullmatch(method.name):
            return True
        field = method.input_type.fields_by_name.get("request_id")
        return bool(field and field.GetOptions().Extensions[validate_pb2.field].string.uuid)

    assert not offenders(PUBLIC_METHODS, keeps_rule)


def test_idempotency_levels_state_which_calls_are_safe_to_repeat() -> None:
    def keeps_rule(method: MethodDescriptor) -> bool:
        expected = MethodOptions.IDEMPOTENT
        if READS.match(method.name):
            expected = MethodOptions.NO_SIDE_EFFECTS
        elif method.name in NOT_REPEATABLE:
            expected = MethodOptions.IDEMPOTENCY_UNKNOWN
        return bool(method.GetOptions().idempotency_level == expected)

    assert not offenders(METHODS, keeps_rule)


def test_lists_are_paged() -> None:
    def keeps_rule(method: MethodDescriptor) -> bool:
        items = method.output_type.fields_by_number.get(1)
        return bool(
            {"page_size", "page_token"} <= set(method.input_type.fields_by_name)
            and "next_page_token" in method.output_type.fields_by_name
            and items and items.is_repeated and items.message_type
        )  # fmt: skip

    assert not offenders([m for m in METHODS if m.name.startswith("List")], keeps_rule)


def test_updates_take_a_mask_and_fields_with_presence() -> None:
    def keeps_rule(method: MethodDescriptor) -> bool:
        fields = dict(method.input_type.fields_by_name)
        mask = fields.pop("update_mask", None)
        others = {"etag", "request_id", *re.findall(r"\{(\w+)\}", verb_and_path(method)[1])}
        return bool(
            mask and mask.message_type.full_name == "google.protobuf.FieldMask"
            and all(field.has_presence or field.is_repeated for name, field in fields.items() if name not in others)
        )  # fmt: skip

    assert not offenders([m for m in METHODS if m.name.startswith("Update")], keeps_rule)


def test_updates_refuse_the_fields_of_their_resource_that_they_cannot_change() -> None:
    """The gateway drops a field that the request does not have, and the client would hear that all went well."""
    wrong = []
    for method in (m for m in METHODS if m.name.startswith("Update")):
        request, settable = method.input_type.fields_by_name, (field_behavior_pb2.OPTIONAL,)
        for field in method.output_type.fields:
            found = request.get(field.name)
            options = found.GetOptions().Extensions if found else None
            if options is None or (
                is_refused(options[validate_pb2.field])
                == (tuple(options[field_behavior_pb2.field_behavior]) == settable)
            ):
                wrong.append(f"{method.name}: {field.name}")
    assert not wrong


def test_every_field_of_a_request_declares_its_behavior() -> None:
    def keeps_rule(field: FieldDescriptor) -> bool:
        # A type that answers contain too, like Money, cannot declare it: the behavior depends on the message around it.
        behaviors = set(field.GetOptions().Extensions[field_behavior_pb2.field_behavior])
        return field.containing_type.full_name in ANSWERED or bool(behaviors & BEHAVIORS)

    assert not offenders(REQUEST_FIELDS, keeps_rule)


def test_a_missing_required_field_is_refused_and_no_other() -> None:
    """`REQUIRED` is documentation; the validation rules beside it are what the guard runs."""
    wrong = []
    for method in METHODS:
        empty = message_factory.GetMessageClass(method.input_type)()
        # A rule of the message has no field.
        paths = [v.proto.field.elements for v in VALIDATOR.collect_violations(empty) if v.proto.field]
        refused = {path[0].field_name for path in paths if path}
        for field in method.input_type.fields:
            required = field_behavior_pb2.REQUIRED in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
            if required != (field.name in refused):
                wrong.append(field.full_name)
    assert not wrong


# Limits


def is_bounded(pattern: str) -> bool:
    """Return whether a regular expression matches only texts of limited length. Handles classes, `*`, `+`, `{n,}`."""
    without_classes = re.sub(r"\[[^\]]*\]", "x", pattern)
    return pattern.startswith("^") and pattern.endswith("$") and not re.search(r"[*+]|,\}", without_classes)


def is_refused(rules: validate_pb2.FieldRules) -> bool:
    """Return whether the rules refuse every value: the field exists so that the gateway does not drop it unseen."""
    return any(rule.id == "not_settable" and rule.expression == "false" for rule in rules.cel)


def is_limited(field: Any, rules: validate_pb2.FieldRules) -> bool:
    """Return whether the rules limit the size of one value."""
    if is_refused(rules):
        return True
    if field.type == FieldDescriptor.TYPE_STRING:
        text = rules.string
        limits = ("len", "max_len", "len_bytes", "max_bytes", "const", "uuid")
        return bool(text) and (any(map(text.HasField, limits)) or "in" in set_rules(text) or is_bounded(text.pattern))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return any(map(rules.bytes.HasField, ("len", "max_len")))
    if field.type in INTEGERS:
        numbers = getattr(rules, INTEGERS[field.type])
        ranged = numbers.WhichOneof("less_than") and numbers.WhichOneof("greater_than")
        return field.name in UNBOUNDED or bool(ranged) or "in" in set_rules(numbers)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return bool(rules.enum.defined_only)
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return False  # the contract has no fractions
    if field.message_type and field.message_type.full_name == "google.protobuf.Duration":
        return bool(rules.duration.WhichOneof("less_than") and rules.duration.WhichOneof("greater_than"))
    return True


def set_rules(rules: Any) -> set[str]:
    return {field.name for field, _ in rules.ListFields()}


def test_every_value_of_a_request_is_limited() -> None:
    def keeps_rule(field: FieldDescriptor) -> bool:
        rules = field.GetOptions().Extensions[validate_pb2.field]
        if field.message_type and field.message_type.GetOptions().map_entry:
            key, value = field.message_type.fields
            limited = is_limited(key, rules.map.keys) and is_limited(value, rules.map.values)
            return bool(rules.map.HasField("max_pairs")) and limited
        if field.is_repeated:
            return bool(rules.repeated.HasField("max_items")) and is_limited(field, rules.repeated.items)
        return is_limited(field, rules)

    assert not offenders(REQUEST_FIELDS, keeps_rule)


@pytest.mark.parametrize(
    ("pattern", "bounded"),
    [
        ("^[A-Z]{3}$", True),
        ("^[a-z0-9][a-z+*]{0,63}$", True),
        ("^[a-z]+$", False),
        ("[A-Z]{3}", False),
        ("^a{2,}$", False),
    ],
)
def test_a_pattern_limits_only_the_text_it_spans(pattern: str, bounded: bool) -> None:
    assert is_bounded(pattern) is bounded


# Names and types


def test_enums_begin_with_unspecified() -> None:
    assert not offenders(
        ENUMS, lambda enum: enum.values_by_number[0].name.endswith("_UNSPECIFIED") and enum.name != "Status"
    )


def test_only_timestamps_are_named_time() -> None:
    def is_time(field: FieldDescriptor) -> bool:
        return bool(field.message_type) and field.message_type.full_name == "google.protobuf.Timestamp"

    assert not offenders(FIELDS, lambda field: is_time(field) == field.name.endswith("_time"))


def test_no_field_is_a_fraction() -> None:
    fractions = (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT)
    assert not offenders(FIELDS, lambda field: field.type not in fractions)


def test_secrets_are_marked_sensitive() -> None:
    """Fields with the mark appear in no log."""

    def keeps_rule(field: FieldDescriptor) -> bool:
        is_secret = SECRET.search(field.name) and field.name not in NO_SECRET
        return not is_secret or bool(field.GetOptions().Extensions[access_pb2.sensitive])

    assert not offenders(FIELDS, keeps_rule)


def test_no_service_uses_messages_of_another() -> None:
    foreign = [
        f"{file.name} imports {dependency.name}"
        for file in FILES
        for dependency in file.dependencies
        for folder, package in [dependency.name.split("/")[:2]]
        if folder not in {"google", "buf"} and package not in {file.package.split(".")[1], "access", "type"}
    ]
    assert not foreign


# Comments


def comments(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    """Yield each element of a file with its comment."""
    texts = {tuple(at.path): at.leading_comments.strip() for at in file.source_code_info.location}

    def walk(prefix: str, path: tuple[int, ...], element: Any, parts: dict[str, int]) -> Iterator[tuple[str, str]]:
        for part, number in parts.items():
            for index, child in enumerate(getattr(element, part)):
                if part == "nested_type" and child.options.map_entry:
                    continue
                here = (*path, number, index)
                yield f"{prefix}.{child.name}", texts.get(here, "")
                yield from walk(f"{prefix}.{child.name}", here, child, INSIDE[part])

    return walk(file.package, (), file, {"message_type": 4, "enum_type": 5, "service": 6, "extension": 7})


_OF_MESSAGE = {"field": 2, "nested_type": 3, "enum_type": 4, "oneof_decl": 8}
INSIDE: dict[str, dict[str, int]] = {
    "message_type": _OF_MESSAGE,
    "nested_type": _OF_MESSAGE,
    "enum_type": {"value": 2},
    "service": {"method": 2},
    "method": {}, "field": {}, "value": {}, "oneof_decl": {}, "extension": {},
}  # fmt: skip

DESCRIPTORS = FileDescriptorSet.FromString((generate.GEN / "gateway.binpb").read_bytes())
OURS = [file for file in DESCRIPTORS.file if file.name.startswith("stampede/")]
# protoc wraps each `optional` field in a oneof `_name`, which has no comment.
COMMENTS = {name: text for file in OURS for name, text in comments(file) if not re.search(r"\._\w+$", name)}


def test_every_element_has_a_comment() -> None:
    assert len(COMMENTS) > len(METHODS)
    assert not [name for name, text in COMMENTS.items() if not text]


def test_comments_are_sentences() -> None:
    assert not [name for name, text in COMMENTS.items() if text and not text.endswith(".")]


def reasons() -> set[str]:
    """Return every reason with which a service can refuse."""
    for module in pkgutil.walk_packages(services.__path__, "services."):
        if not re.search(r"\.(__main__|env|migrations)\b", module.name):
            importlib.import_module(module.name)

    def under(kind: type[AppError]) -> Iterator[str]:
        for child in kind.__subclasses__():
            yield child.reason
            yield from under(child)

    return set(under(AppError))


def test_the_reasons_that_comments_promise_exist() -> None:
    """A renamed error must not leave its old name in the contract."""
    known = reasons() | set(code_pb2.Code.keys()) | {value for enum in ENUMS for value in enum.values_by_name}
    known.add("CARD_DECLINED")  # a reason of the payment provider, passed on
    unknown = {
        f"{name}: {reason}"
        for name, text in COMMENTS.items()
        for reason in re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`|reason `([A-Z_]+)`", text)
        if "".join(reason) not in known
    }
    assert not unknown
