"""What a service's process does before anything else."""

import resource
from collections.abc import Iterator

import pytest

from services.chassis.process import _allow_many_files


@pytest.fixture
def hard_limit() -> Iterator[int]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_low_limit_of_open_files_is_raised(hard_limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard_limit))
    _allow_many_files()
    most = 32_768 if hard_limit == resource.RLIM_INFINITY else min(hard_limit, 32_768)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, hard_limit)


def test_a_limit_is_never_lowered(hard_limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    _allow_many_files()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard_limit, hard_limit)
