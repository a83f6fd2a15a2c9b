"""Yesterday's payloads: today's encoder makes them byte for byte, and today's decoder reads them."""

from inspect import isclass

import pytest

from fedpeft import wire
from fedpeft.codecs import NAMES, Codec
from tests.codecs.examples import all_bits
from tests.wire.crafting import coder, field_of, header
from tests.wire.golden.make import CODECS, FOLDER, PARTS, payload


def test_every_golden_file_is_here():
    assert {path.stem for path in FOLDER.glob("*.bin")} == PARTS.keys()
    assert sum(path.stat().st_size for path in FOLDER.glob("*.bin")) < 25_000


@pytest.mark.parametrize("name", PARTS)
def test_the_encoder_still_makes_it(name):
    assert payload(name) == (FOLDER / f"{name}.bin").read_bytes(), "the format changed: it needs a new wire.VERSION"


@pytest.mark.parametrize("name", PARTS)
def test_the_decoder_reads_it(name):
    data = (FOLDER / f"{name}.bin").read_bytes()
    layout = {key: field_of(part) for key, part in PARTS[name].items()}
    assert all_bits(wire.unpack(data, header(codec=f"golden {name}"), layout)) == all_bits(PARTS[name])


def test_every_codec_has_a_golden_file():
    names = [
        name for name, codec in NAMES.items() if name == "per_slot" or (isclass(codec) and issubclass(codec, Codec))
    ]
    shown = " ".join(map(repr, CODECS.values()))
    assert not [name for name in names if f"{name}(" not in shown], "add an instance to tests/wire/golden/make.py"
    assert CODECS.keys() <= PARTS.keys()


def test_every_coder_has_a_golden_file():
    named = {name: coder((FOLDER / f"{name}.bin").read_bytes()) for name in PARTS if name.count("_") >= 1}
    assert set(named.values()) == {"bits", "rans", "rans_classes", "rice"}
    for kind in ("bits", "rans", "rans_classes", "rice"):
        assert all(used == kind for name, used in named.items() if name.partition("_")[2].lstrip("0123456789_") == kind)
