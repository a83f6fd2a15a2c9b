"""The space of an adapter."""

import hashlib
import json
import pickle

import pytest
import torch

from fedpeft.errors import SpaceError
from fedpeft.space import Slot, Space
from tests.codecs.examples import without_type_checks

A, B, HEAD, SCALAR = (
    Slot("a", (2, 3), "lora_A"),
    Slot("b", (3, 2), "lora_B"),
    Slot("c", (4,), "head"),
    Slot("d", (), "x"),
)
SPACE = Space((B, SCALAR, A, HEAD), config='{"r":3}', base="ab" * 32)


def test_slots_are_sorted_by_name_and_laid_end_to_end():
    assert SPACE.slots == (A, B, HEAD, SCALAR)
    assert SPACE.bounds == (0, 6, 12, 16, 17) and SPACE.numel == 17
    assert Space((Slot("a", (0, 9), "x"),)).numel == 0
    assert str(A) == "'a' (2, 3) (lora_A)"


def test_the_order_in_which_slots_are_given_does_not_matter():
    other = Space((A, HEAD, B, SCALAR), SPACE.config, SPACE.base)
    assert other == SPACE and hash(other) == hash(SPACE) and other.fingerprint == SPACE.fingerprint
    again = pickle.loads(pickle.dumps(SPACE))
    assert again == SPACE and again.fingerprint == SPACE.fingerprint


@pytest.mark.parametrize(
    ("slots", "message"), [((), "at least one slot"), ((A, B, Slot("a", (1,), "head")), "slot 'a' is given twice")]
)
def test_no_slot_and_two_of_one_name_are_refused(slots, message):
    with pytest.raises(ValueError, match=message):
        Space(slots)


def test_flatten_and_tensors_are_each_others_inverse():
    vector = torch.arange(17.0)
    tensors = SPACE.tensors(vector)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {"a": (2, 3), "b": (3, 2), "c": (4,), "d": ()}
    assert torch.equal(SPACE.flatten(tensors), vector)
    assert torch.equal(SPACE.flatten(dict(reversed(tensors.items()))), vector)
    assert tensors["b"].tolist() == [[6, 7], [8, 9], [10, 11]]


def test_views_share_the_vectors_memory_and_flatten_does_not():
    vector = torch.zeros(17)
    SPACE.view(vector, "b")[0, 1] = 5
    SPACE.tensors(vector)["d"].fill_(7)
    assert vector.nonzero().flatten().tolist() == [7, 16]
    tensors = SPACE.tensors(vector)
    SPACE.flatten(tensors).fill_(1)
    assert vector.sum() == 12


def test_flatten_takes_any_float_type_any_stride_and_parameters():
    tensors = {
        "a": torch.arange(6.0, dtype=torch.float64).reshape(2, 3),
        "b": torch.arange(6.0, dtype=torch.bfloat16).reshape(2, 3).T,
        "c": torch.nn.Parameter(torch.ones(4)),
        "d": torch.tensor(3, dtype=torch.float16),
    }
    vector = SPACE.flatten(tensors)
    assert vector.dtype == torch.float32 and not vector.requires_grad
    assert vector.tolist() == [0, 1, 2, 3, 4, 5, 0, 3, 1, 4, 2, 5, 1, 1, 1, 1, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"e": torch.zeros(1)}, "'e' is no slot of this space"),
        ({"a": None}, r"'a': expected a tensor of shape \(2, 3\), got none"),
        ({"a": torch.zeros(3, 2)}, r"'a': expected shape \(2, 3\), got \(3, 2\); .*another PEFT config"),
        ({"c": torch.zeros(1)}, r"'c': expected shape \(4,\), got \(1,\)"),
        ({"d": torch.zeros(1)}, r"'d': expected shape \(\), got \(1,\)"),
    ],
)
def test_tensors_of_another_space_are_named(change, message):
    tensors = {**SPACE.tensors(torch.zeros(17)), **change}
    with pytest.raises(SpaceError, match=message):
        SPACE.flatten({name: tensor for name, tensor in tensors.items() if tensor is not None})


@pytest.mark.parametrize("shape", [(16,), (18,), (1, 17), ()])
@without_type_checks()
def test_a_vector_of_another_size_is_named(shape):
    with pytest.raises(ValueError, match=r"expected a vector of shape \(17,\), got \("):
        SPACE.tensors(torch.zeros(shape))


def test_a_subspace_keeps_slots_config_and_base():
    part = SPACE.subspace(["d", "b"])
    assert part == Space((B, SCALAR), SPACE.config, SPACE.base)
    assert SPACE.subspace(["d", "c", "b", "a"]) == SPACE


OTHERS = {
    "slot ('b'|.*) .*no.* another PEFT config": Space((A, HEAD, SCALAR), SPACE.config, SPACE.base),
    r"slot 'z' \(1,\) \(head\): not expected here": Space(
        (*SPACE.slots, Slot("z", (1,), "head")), SPACE.config, SPACE.base
    ),
    r"slot 'b': expected shape \(3, 2\) as lora_B, got \(2, 3\) as lora_B": Space(
        (A, Slot("b", (2, 3), "lora_B"), HEAD, SCALAR), SPACE.config, SPACE.base
    ),
    r"slot 'a': expected shape \(2, 3\) as lora_A, got \(2, 3\) as head": Space(
        (Slot("a", (2, 3), "head"), B, HEAD, SCALAR), SPACE.config, SPACE.base
    ),
    r"all 4 slots agree, but the base models differ: expected SHA-256 abababababababab\.\.\., got cdcd": Space(
        SPACE.slots, SPACE.config, "cd" * 32
    ),
    "all 4 slots agree, but the PEFT setting 'r' differs: expected 3, got 4": Space(SPACE.slots, '{"r":4}', SPACE.base),
    "the PEFT setting 'r' differs: expected 3, got None": Space(SPACE.slots, "", SPACE.base),
    "the PEFT setting 'alpha' differs: expected None, got 8": Space(SPACE.slots, '{"alpha":8,"r":3}', SPACE.base),
}


@pytest.mark.parametrize("message", OTHERS)
def test_what_differs_is_named(message):
    other = OTHERS[message]
    assert other.fingerprint != SPACE.fingerprint
    with pytest.raises(SpaceError, match=message):
        SPACE.check(other)
    with pytest.raises(SpaceError):
        other.check(SPACE)
    SPACE.check(SPACE)
    other.check(other)


def test_the_same_json_differently_written_is_still_said_to_differ():
    with pytest.raises(SpaceError, match="the spaces differ"):
        SPACE.check(Space(SPACE.slots, '{"r": 3}', SPACE.base))


def test_json_round_trip_and_a_fingerprint_that_never_changes():
    assert Space.from_json(SPACE.to_json()) == SPACE
    assert SPACE.fingerprint == hashlib.sha256(SPACE.to_json().encode()).digest() and len(SPACE.fingerprint) == 32
    assert SPACE.to_json() == (
        '{"base":"' + "ab" * 32 + '","config":"{\\"r\\":3}","slots":'
        '[["a",[2,3],"lora_A"],["b",[3,2],"lora_B"],["c",[4],"head"],["d",[],"x"]]}'
    )
    assert SPACE.fingerprint.hex() == "7bae53163ab586bcedfa8b42bfe7f81f5922c074ef9c7eff51c81f6645fb54b8"
    odd = Space((Slot('schön \ud800 " \\ \0', (1,), "é"),))
    assert Space.from_json(odd.to_json()) == odd


def described(slots='[["a",[1],"x"]]', config='""', base='""'):
    return f'{{"base":{base},"config":{config},"slots":{slots}}}'


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "null", "3", "[]", "{}", '"', "{", "NaN", "[" * 100_000, '{"a":' * 50_000, "\ud800", "\0",
        '{"base":"","config":""}', '{"base":"","slots":[["a",[1],"x"]]}', '{"config":"","slots":[["a",[1],"x"]]}',
        described("[]"), described("{}"), described("null"), described("3"), described('"abc"'), described("[3]"),
        described('[["a",[1]]]'), described('[["a",[1],"x",2]]'), described('["abc"]'), described('[["a","12","x"]]'),
        described('[["a",3,"x"]]'), described('[["a",null,"x"]]'), described('[["a",{"1":2},"x"]]'),
        *(described(f'[["a",[{n}],"x"]]') for n in ("-1", "1.0", "1.5", "1e999", "-1e999", "NaN")),
        *(described(f'[["a",[{n}],"x"]]') for n in ('"3"', "true", "null", "[1]")),
        described('[["a",[1],"x"],["a",[2],"x"]]'), described(f'[["a",[{"9" * 5000}],"x"]]'),
        described(config='"garbage"'), described(config='"[1]"'), described(config='"3"'), described(config="3"),
        described(config="{}x"), described(config=json.dumps("[" * 100_000)),
    ],
    ids=lambda text: text[:40].encode("unicode_escape").decode(),
)  # fmt: skip
def test_what_describes_no_space_is_a_space_error(text):
    with pytest.raises(SpaceError, match="not a description of a space"):
        Space.from_json(text)
