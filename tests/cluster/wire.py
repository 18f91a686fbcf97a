"""A wire to a server of this machine that can be cut."""

import selectors
import socket
import threading
from contextlib import suppress


class Wire:
    """A port of this machine that leads to another, until it is cut; then nobody answers there."""

    def __init__(self, target: int) -> None:
        self._target, self._ends, self._cut = target, list[socket.socket](), False
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._cut = True
        self._listening.close()
        for end in self._ends:
            with suppress(OSError):  # one that has closed by itself
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._cut:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            self._ends += [near, far]
            threading.Thread(target=self._carry, args=(near, far), daemon=True).start()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        with selectors.DefaultSelector() as ready, near, far:
            for one, other in ((near, far), (far, near)):
                ready.register(one, selectors.EVENT_READ, other)
            while True:
                for key, _ in ready.select():
                    try:
                        data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                        if not data:
                            return
                        key.data.sendall(data)
                    except OSError:
                        return
