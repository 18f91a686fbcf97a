"""What every test here can ask for."""

from tests.s3.proxy import proxy
from tests.s3.server import address, environment, server

__all__ = ["address", "environment", "proxy", "server"]
