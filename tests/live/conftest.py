"""What live tests share."""

from __future__ import annotations

import pytest
from certificates import Certificates, make_certificates


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority, and certificates of a server and a client that it signed."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))
