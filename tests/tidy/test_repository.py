"""Things that no file may hold, and what must be found where people look."""

import re
import tomllib

from tests.tidy.source import ROOT, assert_none, holding, tracked


def test_the_licence_is_named_where_tools_and_people_look() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert re.search(r"Apache[- ](?:License,? )?(?:Version )?2\.0", (ROOT / "README.md").read_text())


def test_nothing_is_left_for_later() -> None:
    assert_none("nothing for later", holding(r"\b(?:TODO|FIXME|XXX|HACK)\b", tracked()))


def test_no_file_names_the_machine_it_was_written_on() -> None:
    machine = rf"{re.escape(str(ROOT))}|(?<![\w.}}])/(?:work|root|Users)/\w|(?<![\w.}}])/home/(?!app|nonroot)\w"
    assert_none("no machine", holding(machine, tracked()))


def test_no_file_names_a_package_index() -> None:
    index = r"--(?:extra-)?index-url|--find-links|--trusted-host|pythonhosted\.org|pypi\.org/simple"
    assert_none("no package index", holding(index, tracked()))


def test_no_secret_is_stored() -> None:
    secret = r"-----BEGIN [A-Z ]*PRIVATE KEY-----|\b(?:sk|rk)_live_\w{8,}|\bAKIA[0-9A-Z]{16}\b|\bghp_\w{30,}"
    assert_none("no secret", holding(secret, tracked()))
