from collections.abc import Iterator

import pytest

from tests.server.local_bench import Fake, threads_end


@pytest.fixture
def service() -> Iterator[Fake]:
    with threads_end(), Fake() as service:
        yield service
        service.network.before = lambda x, c_noise: None
