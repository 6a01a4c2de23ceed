"""What the processes of one job need: an address to meet at, and devices of their own."""

import os
import socket


def free_address() -> str:
    """An address of this machine at which nobody listens, such as `localhost:12345`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def environment_with(devices: int) -> dict[str, str]:
    """The environment of a process with so many fake devices; it compiles as fast as the tests do."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    return os.environ | {"XLA_FLAGS": flags}
