"""Yesterday's payloads: today's encoder makes them byte for byte, and today's decoder reads them."""

import pytest

from fedpeft import wire
from tests.codecs.examples import all_bits
from tests.wire.crafting import coder, field_of, header
from tests.wire.golden.make import FOLDER, PARTS, payload


def test_every_golden_file_is_here():
    assert {path.stem for path in FOLDER.glob("*.bin")} == PARTS.keys()
    assert sum(path.stat().st_size for path in FOLDER.glob("*.bin")) < 20_000


@pytest.mark.parametrize("name", PARTS)
def test_the_encoder_still_makes_it(name):
    assert payload(name) == (FOLDER / f"{name}.bin").read_bytes(), "the format changed: it needs a new wire.VERSION"


@pytest.mark.parametrize("name", PARTS)
def test_the_decoder_reads_it(name):
    data = (FOLDER / f"{name}.bin").read_bytes()
    layout = {key: field_of(part) for key, part in PARTS[name].items()}
    assert all_bits(wire.unpack(data, header(codec=f"golden {name}"), layout)) == all_bits(PARTS[name])


def test_every_coder_has_a_golden_file():
    named = {name: coder((FOLDER / f"{name}.bin").read_bytes()) for name in PARTS if name.count("_") >= 1}
    assert set(named.values()) == {"bits", "rans", "rans_classes", "rice"}
    for kind in ("bits", "rans", "rans_classes", "rice"):
        assert all(used == kind for name, used in named.items() if name.partition("_")[2].lstrip("0123456789_") == kind)
