"""The limit of open files of a service's process."""

import resource
from collections.abc import Iterator

import pytest

from services.chassis.process import _raise_file_limit


@pytest.fixture
def hard_limit() -> Iterator[int]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_low_limit_of_open_files_is_raised(hard_limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard_limit))
    _raise_file_limit()
    most = 32_768 if hard_limit == resource.RLIM_INFINITY else min(hard_limit, 32_768)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, hard_limit)


def test_limit_of_open_files_is_never_lowered(hard_limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    _raise_file_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard_limit, hard_limit)
