"""Compares proto/onnx.proto with the schema inside the pinned onnx package, field by field.

`cargo test --test all schema::` writes our descriptor to target/tmp/onnx.fds; that must have been run before.
"""

import os
import pathlib

import onnx
import pytest
from google.protobuf import descriptor_pb2

ROOT = pathlib.Path(__file__).parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
PINNED = "1.23.2"


def ours():
    path = TARGET / "tmp" / "onnx.fds"
    if not path.exists():
        pytest.fail(f"{path} is missing; make it with: cargo test --test all schema::")
    descriptors = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
    assert [file.name for file in descriptors.file] == ["onnx.proto"]
    return descriptors.file[0]


def theirs():
    from onnx import onnx_ml_pb2

    return descriptor_pb2.FileDescriptorProto.FromString(onnx_ml_pb2.DESCRIPTOR.serialized_pb)


def enum_facts(enum, path):
    yield f"enum {path}"
    for value in enum.value:
        yield f"{path}.{value.name} = {value.number}"
    yield from reserved(enum, path)


def reserved(holder, path):
    for numbers in holder.reserved_range:
        yield f"{path} reserves {numbers.start}..{numbers.end}"
    for name in holder.reserved_name:
        yield f"{path} reserves the name {name}"


def message_facts(message, path):
    yield f"message {path}"
    for field in message.field:
        oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None
        label = descriptor_pb2.FieldDescriptorProto.Label.Name(field.label)
        kind = descriptor_pb2.FieldDescriptorProto.Type.Name(field.type)
        yield (
            f"{path}.{field.name} = {field.number}: {label} {kind} {field.type_name} packed={field.options.packed} "
            f"oneof={oneof} default={field.default_value!r} extends={field.extendee!r}"
        )
    for oneof in message.oneof_decl:
        yield f"oneof {path}.{oneof.name}"
    for inner in message.nested_type:
        yield from message_facts(inner, f"{path}.{inner.name}")
    for inner in message.enum_type:
        yield from enum_facts(inner, f"{path}.{inner.name}")
    for extensions in message.extension_range:
        yield f"{path} extensions {extensions.start}..{extensions.end}"
    yield from reserved(message, path)


def facts(file):
    """One line for each thing that decides how bytes are read."""
    yield f"package {file.package}"
    yield f"syntax {file.syntax or 'proto2'}"
    for message in file.message_type:
        yield from message_facts(message, message.name)
    for enum in file.enum_type:
        yield from enum_facts(enum, enum.name)


def test_the_onnx_package_is_the_pinned_one():
    assert onnx.__version__ == PINNED


def test_the_schemas_agree():
    mine, official = set(facts(ours())), set(facts(theirs()))
    assert len(official) > 200
    assert sorted(official - mine) == [], "in the onnx package, not in proto/onnx.proto"
    assert sorted(mine - official) == [], "in proto/onnx.proto, not in the onnx package"


def test_a_difference_is_seen():
    changed = ours()
    fields = {field.name: field for message in changed.message_type if message.name == "TensorProto" for field in message.field}
    fields["float_data"].options.packed = False
    difference = set(facts(changed)) - set(facts(ours()))
    assert len(difference) == 1 and "TensorProto.float_data" in difference.pop()
