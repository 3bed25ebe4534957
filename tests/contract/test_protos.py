"""The rules we hold our contract to, checked on the descriptors themselves.

Casing, packages and the like are buf's business (protos/lint.py); these are the rules that buf does not know.
"""

import functools
import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

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

READS = re.compile(r"(Get|List|Watch|Suggest|Export)([A-Z]|$)")
# Sign-in calls: each begins another session, or uses a token up; ending one twice is no error.
WITHOUT_REQUEST_ID = {"Login", "Refresh", "Logout"}
NOT_REPEATABLE = {"Login", "Refresh"}
# Providers sign the raw body, so nothing may be parsed before the signature is checked. Their events have ids.
RAW_BODY = re.compile(r"Receive\w+Webhook")
# A count of what is in the warehouse replaces the stock as a whole; the contract fixes it as a PUT.
PUTS = {"SetStock"}
# A request's integers without both bounds, and why.
UNBOUNDED = {
    "page_size": "too big is taken as the largest page",
    "min_price": "any number is a sound question; beyond all prices it finds nothing",
    "max_price": "as min_price",
}
SECRET = re.compile(r"(^|_)(password|secret|token|payment_method|email)(_|$)")
NO_SECRET = {"page_token", "next_page_token", "token_type", "email_verified"}
BEHAVIORS = {
    field_behavior_pb2.REQUIRED,
    field_behavior_pb2.OPTIONAL,
    field_behavior_pb2.IDENTIFIER,
    field_behavior_pb2.IMMUTABLE,
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
    """Our messages in which `message` consists, itself included, by full name."""
    found = {} if found is None else found
    if message.full_name.startswith("stampede.") and message.full_name not in found:
        found[message.full_name] = message
        for field in message.fields:
            if field.message_type:
                reachable(field.message_type, found)
    return found


REQUESTED = functools.reduce(lambda all_, method: reachable(method.input_type, all_), METHODS, {})
ANSWERED = functools.reduce(lambda all_, method: reachable(method.output_type, all_), METHODS, {})
# Includes the entries of maps, whose keys and values have rules of their own at the map.
REQUEST_FIELDS = [f for m in REQUESTED.values() if not m.GetOptions().map_entry for f in m.fields]

each_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.full_name)
each_public_method = pytest.mark.parametrize(
    "method", [m for m in METHODS if not is_mesh(m)], ids=lambda m: m.full_name
)
each_request_field = pytest.mark.parametrize("field", REQUEST_FIELDS, ids=lambda f: f.full_name)
each_message = pytest.mark.parametrize("message", MESSAGES, ids=lambda m: m.full_name)


# Who may call


@each_method
def test_every_method_says_who_may_call_it(method: MethodDescriptor) -> None:
    assert access(method) != access_pb2.ACCESS_UNSPECIFIED


@each_method
def test_mesh_methods_and_only_they_name_callers_that_exist(method: MethodDescriptor) -> None:
    callers = set(method.GetOptions().Extensions[access_pb2.callers])
    owner = method.full_name.split(".")[1]
    assert bool(callers) == is_mesh(method)
    assert callers <= SERVICES - {owner}


@pytest.mark.parametrize("name", sorted({m.containing_service.full_name for m in METHODS}))
def test_mesh_methods_stand_in_services_of_their_own(name: str) -> None:
    """The gateway lists services, so a mesh method cannot leak through one that is listed."""
    assert len({is_mesh(method) for method in METHODS if method.containing_service.full_name == name}) == 1


# Routes


def verb_and_path(method: MethodDescriptor) -> tuple[str, str]:
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern")
    return verb or "", getattr(rule, verb) if verb else ""


@each_method
def test_a_public_method_has_a_route_and_a_mesh_method_has_none(method: MethodDescriptor) -> None:
    _, path = verb_and_path(method)
    if is_mesh(method):
        assert not path
    else:
        assert path.startswith(("/v1/", "/.well-known/"))
        assert not method.GetOptions().Extensions[annotations_pb2.http].additional_bindings


@each_public_method
def test_path_parameters_are_plain_fields_of_the_request(method: MethodDescriptor) -> None:
    for parameter in re.findall(r"\{([^}]*)\}", verb_and_path(method)[1]):
        field = method.input_type.fields_by_name[parameter]  # a KeyError for `{a.b}` and `{a=b/*}`
        assert field.type == FieldDescriptor.TYPE_STRING
        assert not field.is_repeated


@each_public_method
def test_verbs_say_what_a_method_does(method: MethodDescriptor) -> None:
    verb, _ = verb_and_path(method)
    body = method.GetOptions().Extensions[annotations_pb2.http].body
    assert (verb == "get") == bool(READS.match(method.name))
    assert (verb == "patch") == method.name.startswith("Update")
    assert (verb == "delete") == method.name.startswith("Delete")
    assert (verb == "put") == (method.name in PUTS)
    assert body == ("" if verb in ("get", "delete") else "*")


def test_no_two_methods_share_a_route() -> None:
    routes = [(verb, re.sub(r"\{\w+\}", "{}", path)) for verb, path in map(verb_and_path, METHODS) if path]
    assert len(routes) == len(set(routes))


# Requests and answers


@each_method
def test_requests_are_named_after_their_method(method: MethodDescriptor) -> None:
    if RAW_BODY.fullmatch(method.name):
        assert method.input_type.full_name == "google.api.HttpBody"
    else:
        assert method.input_type.name == f"{method.name}Request"


@each_public_method
def test_a_mutation_can_be_repeated_safely(method: MethodDescriptor) -> None:
    if READS.match(method.name) or method.name in WITHOUT_REQUEST_ID or RAW_BODY.fullmatch(method.name):
        return
    rules = method.input_type.fields_by_name["request_id"].GetOptions().Extensions[validate_pb2.field]
    assert rules.string.uuid


@each_method
def test_idempotency_levels_tell_clients_what_they_may_repeat(method: MethodDescriptor) -> None:
    expected = MethodOptions.IDEMPOTENT
    if READS.match(method.name):
        expected = MethodOptions.NO_SIDE_EFFECTS
    elif method.name in NOT_REPEATABLE:
        expected = MethodOptions.IDEMPOTENCY_UNKNOWN
    assert method.GetOptions().idempotency_level == expected


@pytest.mark.parametrize("method", [m for m in METHODS if m.name.startswith("List")], ids=lambda m: m.full_name)
def test_a_list_is_paged(method: MethodDescriptor) -> None:
    assert {"page_size", "page_token"} <= set(method.input_type.fields_by_name)
    assert "next_page_token" in method.output_type.fields_by_name
    items = method.output_type.fields_by_number[1]
    assert items.is_repeated
    assert items.message_type


@pytest.mark.parametrize("method", [m for m in METHODS if m.name.startswith("Update")], ids=lambda m: m.full_name)
def test_an_update_takes_a_mask_and_says_which_fields_were_sent(method: MethodDescriptor) -> None:
    fields = method.input_type.fields_by_name
    assert fields["update_mask"].message_type.full_name == "google.protobuf.FieldMask"
    named_by_the_route = set(re.findall(r"\{(\w+)\}", verb_and_path(method)[1]))
    for name, field in fields.items():
        if name not in {"update_mask", "etag", "request_id", *named_by_the_route}:
            assert field.has_presence or field.is_repeated, name


@each_request_field
def test_every_field_of_a_request_declares_its_behavior(field: FieldDescriptor) -> None:
    if field.containing_type.full_name in ANSWERED:
        return  # a type that answers are made of too, like Money; what is required of it depends on where it stands
    behaviors = set(field.GetOptions().Extensions[field_behavior_pb2.field_behavior])
    assert behaviors & BEHAVIORS


@each_method
def test_what_is_required_is_refused_when_it_is_missing(method: MethodDescriptor) -> None:
    """`REQUIRED` is documentation; the rules beside it are what the guard runs."""
    empty = message_factory.GetMessageClass(method.input_type)()
    refused = {
        v.proto.field.elements[0].field_name for v in VALIDATOR.collect_violations(empty) if v.proto.field.elements
    }
    for field in method.input_type.fields:
        required = field_behavior_pb2.REQUIRED in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
        assert required == (field.name in refused), field.full_name


# Limits on everything


def is_bounded(pattern: str) -> bool:
    """Whether a regular expression matches texts of a limited length only. Knows classes, `*`, `+` and `{n,}`."""
    without_classes = re.sub(r"\[[^\]]*\]", "x", pattern)
    return pattern.startswith("^") and pattern.endswith("$") and not re.search(r"[*+]|,\}", without_classes)


def is_limited(field: Any, rules: validate_pb2.FieldRules) -> bool:
    """Whether what a client can send in one value is limited."""
    if field.type == FieldDescriptor.TYPE_STRING:
        text = rules.string
        limits = ("len", "max_len", "len_bytes", "max_bytes", "const", "uuid")
        return bool(text) and (any(map(text.HasField, limits)) or "in" in described(text) or is_bounded(text.pattern))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return any(map(rules.bytes.HasField, ("len", "max_len")))
    if field.type in INTEGERS:
        numbers = getattr(rules, INTEGERS[field.type])
        ranged = numbers.WhichOneof("less_than") and numbers.WhichOneof("greater_than")
        return field.name in UNBOUNDED or bool(ranged) or "in" in described(numbers)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return bool(rules.enum.defined_only)
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return False  # nothing here is a fraction
    if field.message_type and field.message_type.full_name == "google.protobuf.Duration":
        return bool(rules.duration.WhichOneof("less_than") and rules.duration.WhichOneof("greater_than"))
    return True


def described(rules: Any) -> set[str]:
    return {field.name for field, _ in rules.ListFields()}


@each_request_field
def test_everything_a_client_sends_is_limited(field: FieldDescriptor) -> None:
    rules = field.GetOptions().Extensions[validate_pb2.field]
    if field.message_type and field.message_type.GetOptions().map_entry:
        assert rules.map.HasField("max_pairs")
        key, value = field.message_type.fields
        assert is_limited(key, rules.map.keys)
        assert is_limited(value, rules.map.values)
    elif field.is_repeated:
        assert rules.repeated.HasField("max_items")
        assert is_limited(field, rules.repeated.items)
    else:
        assert is_limited(field, rules)


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
def test_a_pattern_limits_only_what_it_spans(pattern: str, bounded: bool) -> None:
    assert is_bounded(pattern) is bounded


# Names and types


@pytest.mark.parametrize("enum", ENUMS, ids=lambda e: e.full_name)
def test_enums_begin_with_unspecified(enum: Any) -> None:
    assert enum.values_by_number[0].name.endswith("_UNSPECIFIED")
    assert enum.name != "Status"


@each_message
def test_times_are_named_so_and_amounts_are_no_fractions(message: Any) -> None:
    for field in message.fields:
        is_time = bool(field.message_type) and field.message_type.full_name == "google.protobuf.Timestamp"
        assert is_time == field.name.endswith("_time"), field.full_name
        assert field.type not in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT), field.full_name


@each_message
def test_secrets_are_marked_so_that_no_log_shows_them(message: Any) -> None:
    for field in message.fields:
        if SECRET.search(field.name) and field.name not in NO_SECRET:
            assert field.GetOptions().Extensions[access_pb2.sensitive], field.full_name


def test_no_service_shares_messages_with_another() -> None:
    for file in FILES:
        owner = file.package.split(".")[1]
        for dependency in file.dependencies:
            parts = dependency.name.split("/")
            assert parts[0] in {"google", "buf"} or parts[1] in {owner, "access", "type"}, (
                f"{file.name}: {dependency.name}"
            )


# Comments


def comments(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    """What is said above each element of a file."""
    said = {tuple(at.path): at.leading_comments.strip() for at in file.source_code_info.location}

    def walk(prefix: str, path: tuple[int, ...], element: Any, parts: dict[str, int]) -> Iterator[tuple[str, str]]:
        for part, number in parts.items():
            for index, child in enumerate(getattr(element, part)):
                if part == "nested_type" and child.options.map_entry:
                    continue
                here = (*path, number, index)
                yield f"{prefix}.{child.name}", said.get(here, "")
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
# `optional` fields are, to protoc, the only members of oneofs that nobody wrote.
COMMENTS = {name: said for file in OURS for name, said in comments(file) if not re.search(r"\._\w+$", name)}


def test_everything_is_documented() -> None:
    assert len(COMMENTS) > len(METHODS)
    assert not [name for name, said in COMMENTS.items() if not said]


def test_comments_are_sentences() -> None:
    assert not [name for name, said in COMMENTS.items() if said and not said.endswith((".", ".\n"))]


def reasons() -> set[str]:
    """Every reason that some service can refuse with."""
    for module in pkgutil.walk_packages(services.__path__, "services."):
        if not re.search(r"\.(__main__|env|migrations)\b", module.name):
            importlib.import_module(module.name)

    def under(kind: type[AppError]) -> Iterator[str]:
        for child in kind.__subclasses__():
            yield child.reason
            yield from under(child)

    return set(under(AppError))


def test_the_reasons_that_comments_promise_exist() -> None:
    """A renamed error must not leave the contract promising the old name."""
    known = reasons() | set(code_pb2.Code.keys()) | {value for enum in ENUMS for value in enum.values_by_name}
    examples = {"CARD_DECLINED"}  # what a provider says, passed on
    for name, said in COMMENTS.items():
        promised = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", said)) | set(re.findall(r"reason `([A-Z_]+)`", said))
        assert promised <= known | examples, name
