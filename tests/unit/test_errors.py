from __future__ import annotations

import inspect
import pickle

import pytest

from fleet import errors
from fleet.errors import ERROR_TABLE, FleetError, IllegalTransition, UnknownRole, exit_code, from_dict, http_status

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, FleetError)]


def make(cls: type[FleetError]) -> FleetError:
    if cls is IllegalTransition:
        return IllegalTransition("task", "t-1", "succeeded", "running", [])
    return cls("expected this, got that; do so", id="x", retry_after_s=2.5)


def test_every_error_is_mapped() -> None:
    assert set(CLASSES) == set(ERROR_TABLE)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_error_crosses_processes_with_its_fields(cls: type[FleetError]) -> None:
    error = make(cls)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert (again.message, again.fields, str(again)) == (error.message, error.fields, str(error))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_error_crosses_http_with_its_fields(cls: type[FleetError]) -> None:
    error = make(cls)
    again = from_dict(error.to_dict())
    assert type(again) is cls
    assert again.to_dict() == error.to_dict()


def test_codes_are_different() -> None:
    codes = [cls.code for cls in CLASSES]
    assert len(codes) == len(set(codes))


def test_statuses_and_exit_codes_are_of_the_right_kind() -> None:
    for cls in CLASSES:
        assert 400 <= http_status(make(cls)) < 600
        assert 1 <= exit_code(make(cls)) < 126


def test_an_unknown_code_becomes_the_base() -> None:
    error = from_dict({"error": "of_a_newer_fleet", "message": "hm", "more": 1})
    assert type(error) is FleetError
    assert error.fields == {"more": 1}


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__ is not None
    for cls in CLASSES:
        assert cls.__name__ in errors.__doc__
        assert inspect.getdoc(cls)


def test_a_subclass_is_caught_as_its_parent() -> None:
    with pytest.raises(errors.InvalidInput):
        raise UnknownRole("no role x", role="x", known=["y"])
