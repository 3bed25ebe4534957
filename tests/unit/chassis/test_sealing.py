"""Sealing: what one secret sealed opens with that secret, for that purpose, and through a rotation."""

import pytest

from services.chassis.data.sealing import Sealer, WrongSecret, derive_key

# Sealed by an earlier version, which derived the key in the same way.
SECRET, PURPOSE = "vT6yBn3mQw8eXz1c", "stampede signing keys"
SEALED = b"gAAAAABrCNuFtLqs7hdpijNk9UCwASRd9AvEh82rUYaHXfuvGQ1OMvHMYfQoS8VGpKOac6MQ7A74CQP6NVBtcubH8E7h66BMSA=="


def test_sealed_value_opens() -> None:
    sealer = Sealer(PURPOSE, SECRET)
    sealed = sealer.seal(b"a private key")
    assert sealer.open(sealed) == b"a private key"
    assert b"private" not in sealed


def test_value_of_an_earlier_version_opens() -> None:
    assert Sealer(PURPOSE, SECRET).open(SEALED) == b"a private key"


def test_secret_is_rotated_with_two_accepted() -> None:
    both, new = Sealer(PURPOSE, "the new secret", SECRET), Sealer(PURPOSE, "the new secret")
    assert both.open(SEALED) == b"a private key"
    assert new.open(both.seal(b"another")) == b"another"
    with pytest.raises(WrongSecret):
        new.open(SEALED)


@pytest.mark.parametrize("sealed", [b"", b"no token", SEALED[:-2] + b"A=", SEALED[:-4]])
def test_changed_value_does_not_open(sealed: bytes) -> None:
    with pytest.raises(WrongSecret):
        Sealer(PURPOSE, SECRET).open(sealed)


def test_value_of_another_purpose_does_not_open() -> None:
    with pytest.raises(WrongSecret):
        Sealer("something else", SECRET).open(SEALED)
    assert derive_key(SECRET, PURPOSE) != derive_key(SECRET, "something else")
