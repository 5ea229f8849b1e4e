"""What the tests of the retrieving program may ask for."""

from __future__ import annotations

from tests.loopback.conftest import no_download

__all__ = ["no_download"]
