from __future__ import annotations

import pytest

from salmacli.errors import CheckpointError, ConfigError, DataError, SalmaError, UsageError


def test_message_carries_the_mend() -> None:
    assert str(DataError("a.json is missing", "make it")) == "a.json is missing; make it"
    assert str(DataError("a.json is missing")) == "a.json is missing"


def test_message_is_one_line_whatever_is_quoted() -> None:
    assert str(SalmaError("first\n  second\tthird")) == "first second third"


@pytest.mark.parametrize(
    ("kind", "code"),
    [(SalmaError, 1), (UsageError, 2), (ConfigError, 3), (DataError, 4), (CheckpointError, 4)],
)
def test_exit_codes(kind: type[SalmaError], code: int) -> None:
    assert issubclass(kind, SalmaError)
    assert kind("x").exit_code == code
