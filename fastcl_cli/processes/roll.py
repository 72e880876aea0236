"""Which of the processes that should train together have come, and which of them are lost.

Each process enters its host in a store that all can reach, and holds a connection to process 0
whose end tells at once that a process has gone: its machine's kernel closes it, and where the
machine itself has gone, the other kernel finds out (TCP keepalive). No process has to run for
that, so one that computes, saves or waits for long is not taken for dead.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from datetime import timedelta

from torch.distributed import (  # type: ignore[attr-defined]
    DistError,
    PrefixStore,
    Store,
    TCPStore,
)

from fastcl_cli.errors import RunFailedError, UsageError
from fastcl_cli.processes.launchers import Place

GRACE_S = 30.0
"""Seconds in which a process notices by itself that another has gone, finishes what it is at, and
ends. One that waits for a GPU which waits for the lost one never does."""
_IDLE_S, _BETWEEN_S, _PROBES = 10, 5, 3
"""Keepalive: a machine that says nothing for 10 + 3·5 seconds is gone."""
_END, _GONE = b"end\n", b"gone\n"
"""What a process says when it ends; what process 0 then says to the others."""


def open_store(place: Place, limit_s: float) -> Store:
    """A connection to the store, which process 0 keeps unless torchrun does.

    Raises:
        OSError, RuntimeError: it cannot be reached, or not be opened.
    """
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    keeps = place.rank == 0 and not kept
    if not keeps:
        _await_listener(place, limit_s)
    store = TCPStore(
        place.host,
        place.port,
        is_master=keeps,
        timeout=timedelta(seconds=limit_s),
        wait_for_workers=False,
        multi_tenant=True,
    )
    # A torchrun that starts the processes again keeps the store.
    return PrefixStore(f"fastcl {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _await_listener(place: Place, limit_s: float) -> None:
    """Wait until the store is there: torch would try for longer than it is told to."""
    deadline = time.monotonic() + limit_s
    while True:
        left = deadline - time.monotonic()
        try:
            socket.create_connection((place.host, place.port), max(0.1, left)).close()
            return
        except OSError:
            if left <= 0:
                raise
            time.sleep(0.1)


class Roll:
    """The processes, as this one knows them.

    Args:
        store: the one that all share.
    """

    def __init__(self, store: Store, place: Place) -> None:
        self._store = store
        self._place = place
        self._hosts: dict[int, str] = {}
        self._lost: set[int] = set()
        self._gone = threading.Event()
        self._closed = threading.Event()
        self._peers: dict[socket.socket, int] = {}
        self._listener: socket.socket | None = None
        self._token = secrets.token_hex()

    def meet(self, device: str, limit_s: float) -> None:
        """Wait for all, and listen from then on for one that goes.

        Args:
            device: what this process computes on, by a name that no other of this machine has, or
                an empty string.
            limit_s: seconds in which every process must have come.

        Raises:
            RunFailedError: some did not come; the error says which.
            UsageError: two of them have the same device.
        """
        if self._place.rank == 0:
            self._listener = _listen()
            self._store.set("roll", f"{self._listener.getsockname()[1]} {self._token}")
        self._store.set(_key(self._place.rank), f"{self._place.machine} {device}")
        self._wait(limit_s)
        self._check_devices()
        if self._place.rank > 0:
            self._connect(limit_s)
        threading.Thread(target=self._listen_on, name="roll", daemon=True).start()

    def _wait(self, limit_s: float) -> None:
        ranks = range(self._place.size)
        keys = [_key(rank) for rank in ranks]
        with suppress(DistError):  # what matters is who came
            self._store.wait(keys, timedelta(seconds=limit_s))
        absent = [rank for rank in ranks if not self._store.check([keys[rank]])]
        if absent:
            present = [rank for rank in ranks if rank not in absent]
            hosts = {self._host(rank) for rank in present}
            silent = [host for host in self._place.hosts if host not in hosts]
            raise RunFailedError(
                f"{listed(absent)} of {len(keys)} did not come within {limit_s:g} s"
                + (f", no word from {', '.join(silent)}" if silent else "")
                + f"; there are {self.names(present)}",
                "see why the others did not start; FASTCL_JOIN_TIMEOUT=SECONDS waits longer",
            )

    def _check_devices(self) -> None:
        owners: dict[str, int] = {}
        for rank in range(self._place.size):
            entry = self._store.get(_key(rank)).decode()
            self._hosts[rank] = entry.split(" ")[0]  # to be named when the store has gone
            if not entry.endswith(" ") and (other := owners.setdefault(entry, rank)) != rank:
                raise UsageError(
                    f"{self.names([other, rank])} would share one GPU", "start one for each GPU"
                )

    def _host(self, rank: int) -> str:
        known = self._hosts.get(rank)
        return known or self._store.get(_key(rank)).decode().split(" ")[0]

    def names(self, ranks: Iterable[int]) -> str:
        """Processes and where they are, for people: ``processes 0-3 (on a), process 4 (on b)``."""
        by_host: dict[str, list[int]] = {}
        for rank in ranks:
            by_host.setdefault(self._host(rank), []).append(rank)
        return ", ".join(f"{listed(own)} (on {host})" for host, own in by_host.items())

    def mark(self, stage: str) -> None:
        """Tell the others that this process has come so far."""
        self._store.set(f"{stage} {self._place.rank}", "1")

    def behind(self, stage: str) -> list[int]:
        """The processes that have not come so far."""
        ranks = range(self._place.size)
        return [rank for rank in ranks if not self._store.check([f"{stage} {rank}"])]

    def is_first(self) -> bool:
        """Whether this is the first process that asks.

        Raises:
            RuntimeError: the store has gone.
        """
        return bool(self._store.add("asked", 1) == 1)

    def lost(self, wait_s: float) -> frozenset[int] | None:
        """The processes that went without a word; None where none is known to have gone, even
        after ``wait_s`` seconds."""
        waits = bool(self._sockets())  # else it is not connected, and hears nothing
        return frozenset(self._lost) if self._gone.wait(wait_s * waits) else None

    def if_stuck(self, act: Callable[[], None]) -> None:
        """Call ``act``, in a thread, when a process has gone and this one has not ended, and closed
        the roll, `GRACE_S` later."""

        def work() -> None:
            self._gone.wait()
            if not self._closed.wait(GRACE_S):
                act()

        threading.Thread(target=work, name="roll, stuck", daemon=True).start()

    def close(self) -> None:
        """Tell the others that this process ends, and that all has been said about why."""
        self._tell(_END)
        self._closed.set()
        for source in self._sockets():  # wakes the thread
            with suppress(OSError):
                source.shutdown(socket.SHUT_RDWR)

    def _sockets(self) -> list[socket.socket]:
        return [*self._peers, *([] if self._listener is None else [self._listener])]

    def _tell(self, line: bytes) -> None:
        for peer in list(self._peers):
            with suppress(OSError):
                peer.sendall(line)

    def _connect(self, limit_s: float) -> None:
        port, token = self._store.get("roll").decode().split(" ")
        try:
            leader = socket.create_connection((self._place.host, int(port)), limit_s)
            leader.settimeout(None)
            leader.sendall(f"{token} {self._place.rank}\n".encode())
        except OSError as error:
            raise RunFailedError(
                f"{self.names([self._place.rank])} cannot connect to {self.names([0])} "
                f"at {self._place.host}:{port}: {error.strerror or error}",
                "open all ports between the hosts",
            ) from error
        _keep_alive(leader)
        self._peers[leader] = 0

    def _listen_on(self) -> None:
        """Until the roll is closed: take connections, and note what comes over them."""
        with selectors.DefaultSelector() as selector:
            for own in self._sockets():
                selector.register(own, selectors.EVENT_READ)
            while not self._closed.is_set() and selector.get_map():
                for key, _ in selector.select():
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    if self._closed.is_set():
                        break
                    if source is self._listener:
                        if (peer := self._accept(source)) is not None:
                            selector.register(peer, selectors.EVENT_READ)
                    elif not self._hear(source):
                        selector.unregister(source)
                        del self._peers[source]
                        source.close()
        for own in self._sockets():
            own.close()

    def _accept(self, listener: socket.socket) -> socket.socket | None:
        """A process's connection; None for a stranger's."""
        with suppress(OSError, ValueError):
            peer, _ = listener.accept()
            peer.settimeout(5)
            token, rank = peer.recv(256).decode().split(" ")
            if token == self._token:
                peer.settimeout(None)
                _keep_alive(peer)
                self._peers[peer] = int(rank)
                return peer
            peer.close()
        return None

    def _hear(self, peer: socket.socket) -> bool:
        """Note what a process says, or that it has gone; returns whether it is still there."""
        try:
            said = peer.recv(4096)
        except OSError:
            said = b""
        if not said:
            self._lost.add(self._peers[peer])
            self._tell(f"{self._peers[peer]}\n".encode())
        for line in said.splitlines(keepends=True):
            if line == _END:
                self._tell(_GONE)
            elif line != _GONE:  # process 0 passes on who is lost
                self._lost.add(int(line))
        self._gone.set()
        return bool(said) and not said.endswith(_END)


def _key(rank: int) -> str:
    return f"process {rank}"


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", 0), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True
        )
    return socket.create_server(("", 0), backlog=4096)


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _BETWEEN_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)


def listed(ranks: Collection[int]) -> str:
    """``process 3``, or ``processes 0-2, 5``."""
    ranges: list[list[int]] = []
    for rank in sorted(ranks):
        if ranges and rank == ranges[-1][1] + 1:
            ranges[-1][1] = rank
        else:
            ranges.append([rank, rank])
    parts = [f"{a}-{b}" if b > a else str(a) for a, b in ranges]
    return ("process " if len(ranks) == 1 else "processes ") + ", ".join(parts)
