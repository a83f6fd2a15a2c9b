"""Keys, signatures, and hashes that no two lists of pieces share."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.errors import IdentityError
from fedpeft.keys.signing import KEY_BYTES, SIGNATURE_BYTES, SigningKey, digest, verified

PIECES = st.lists(st.binary(max_size=4), max_size=4)


@given(st.text(max_size=4), PIECES, st.text(max_size=4), PIECES)
def test_two_lists_of_pieces_have_two_hashes(
    purpose: str, pieces: list[bytes], other: str, others: list[bytes]
) -> None:
    assert (digest(purpose, *pieces) == digest(other, *others)) == ((purpose, pieces) == (other, others))


def test_a_signature_is_of_one_hash_and_one_key() -> None:
    key, hashed = SigningKey(bytes(32)), digest("a")
    signature = key.sign(hashed)
    assert len(key.public) == KEY_BYTES
    assert len(signature) == SIGNATURE_BYTES
    assert key.sign(hashed) == signature
    assert verified(key.public, hashed, signature)
    assert not verified(key.public, digest("b"), signature)
    assert not verified(SigningKey().public, hashed, signature)


@given(st.binary(max_size=70), st.binary(max_size=70), st.binary(max_size=70))
def test_any_bytes_may_be_asked_about(public: bytes, hashed: bytes, signature: bytes) -> None:
    assert not verified(public, hashed, signature)


@given(st.integers(0, 64 * 8 - 1))
def test_no_bit_of_a_signature_can_be_changed(bit: int) -> None:
    key, hashed = SigningKey(bytes(32)), digest("a")
    signature = bytearray(key.sign(hashed))
    signature[bit // 8] ^= 1 << bit % 8
    assert not verified(key.public, hashed, bytes(signature))


def test_a_key_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    key, path = SigningKey(), tmp_path / "signing.key"
    key.save(path)
    assert path.stat().st_mode & 0o077 == 0
    assert SigningKey.load(path).public == key.public
    with pytest.raises(IdentityError, match="never overwritten"):
        SigningKey().save(path)
    assert SigningKey.load(path).public == key.public


def test_what_is_no_key_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    with pytest.raises(IdentityError, match="expected a signing key"):
        SigningKey.load(path)
    path.write_bytes(bytes(31))
    with pytest.raises(IdentityError, match="32 bytes, got 31"):
        SigningKey.load(path)
