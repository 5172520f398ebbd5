"""Our OpAMP messages against those of another implementation, byte for byte and both ways."""

from __future__ import annotations

import random

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from opentelemetry._opamp.proto import opamp_pb2 as theirs

from connectors.core import opamp_pb2 as ours

SHARED = sorted(set(ours.DESCRIPTOR.message_types_by_name) & set(theirs.DESCRIPTOR.message_types_by_name))


def fill(message: Message, chance: random.Random, allowed: set[str], depth: int = 0) -> None:
    """Fill the fields that both implementations know with random values."""
    for field in message.DESCRIPTOR.fields:
        if depth > 4 or (depth == 0 and field.name not in allowed) or chance.random() < 0.2:
            continue
        if field.message_type and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            fill(getattr(message, field.name)[f"k{chance.randrange(9)}"], chance, allowed, depth + 1) if value.message_type else None
        elif field.message_type:
            target = getattr(message, field.name).add() if field.is_repeated else getattr(message, field.name)
            if not field.is_repeated:
                target.SetInParent()
            fill(target, chance, allowed, depth + 1)
        elif field.is_repeated:
            getattr(message, field.name).append(scalar(field, chance))
        else:
            setattr(message, field.name, scalar(field, chance))


def scalar(field: FieldDescriptor, chance: random.Random):
    if field.type == FieldDescriptor.TYPE_STRING:
        return f"text-{chance.randrange(1000)}"
    if field.type == FieldDescriptor.TYPE_BYTES:
        return chance.randbytes(16)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return True
    if field.type == FieldDescriptor.TYPE_ENUM:
        return chance.choice(field.enum_type.values).number
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return chance.random()
    return chance.randrange(1, 2**31)


def test_every_message_of_ours_is_one_of_theirs_with_the_same_fields():
    assert set(ours.DESCRIPTOR.message_types_by_name) <= set(theirs.DESCRIPTOR.message_types_by_name)
    for name in SHARED:
        mine = ours.DESCRIPTOR.message_types_by_name[name].fields_by_name
        other = theirs.DESCRIPTOR.message_types_by_name[name].fields_by_name
        for field_name, field in mine.items():
            assert (field.number, field.type) == (other[field_name].number, other[field_name].type), f"{name}.{field_name}"


@pytest.mark.parametrize("name", SHARED)
def test_messages_read_the_same_in_both_implementations(name):
    chance = random.Random(name)
    allowed = set(ours.DESCRIPTOR.message_types_by_name[name].fields_by_name)
    for _ in range(20):
        mine = getattr(ours, name)()
        fill(mine, chance, allowed)
        wire = mine.SerializeToString(deterministic=True)
        other = getattr(theirs, name).FromString(wire)
        assert other.SerializeToString(deterministic=True) == wire
        assert getattr(ours, name).FromString(other.SerializeToString()) == mine


def test_their_agents_message_is_read_by_us():
    message = theirs.AgentToServer(instance_uid=b"0123456789abcdef", sequence_num=7, capabilities=1)
    message.agent_description.identifying_attributes.add(key="service.name").value.string_value = "x"
    read = ours.AgentToServer.FromString(message.SerializeToString())
    assert (read.instance_uid, read.sequence_num) == (b"0123456789abcdef", 7)
    assert read.agent_description.identifying_attributes[0].value.string_value == "x"
