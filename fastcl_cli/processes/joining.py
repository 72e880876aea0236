"""How processes that a launcher started come together, and how they end.

Whatever goes wrong, one process says so in a line and all of them end.
"""

from __future__ import annotations

import atexit
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path

import torch
import torch.distributed as dist

from fastcl_cli.errors import FastclError, RunFailedError, UsageError
from fastcl_cli.processes import distributed
from fastcl_cli.processes.launchers import Place
from fastcl_cli.processes.roll import Roll, open_store

STATUS_FILE = "FASTCL_STATUS_FILE"
"""Environment variable: where the process that reports an error leaves its exit status. Who set it
sees how processes end, and reports the loss of one."""
JOIN_TIMEOUT = "FASTCL_JOIN_TIMEOUT"
"""Environment variable: seconds in which the processes must have come together."""
_JOIN_S = 120.0
_NAMING_S = 5.0
"""How long a process that lost another tries to learn which."""
_HELP_LOST = "see what ended it (often memory), then `--resume auto`"
_HELP_NETWORK = (
    "open all ports between the hosts; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network "
    "interface to use"
)


@contextmanager
def processes(place: Place) -> Iterator[None]:
    """Join the other processes that a launcher started.

    Of the errors that end them the first one leaves this context; the other processes end without
    a word, with the exit status of their own error.

    Raises:
        UsageError: there is no GPU for this process.
        RunFailedError: the others cannot be reached, or one of them was lost.
    """
    limit_s = _limit_s()
    try:
        roll = Roll(open_store(place, limit_s), place)
    except (OSError, RuntimeError, ValueError) as error:
        raise RunFailedError(_unreachable(place, limit_s, error), _HELP_NETWORK) from error
    ending = _Ending(place, roll)
    try:
        index, device = _choose_device(place)
        roll.meet(device, limit_s)
        roll.if_stuck(ending.now)
        _connect(place, roll, index, limit_s)
        yield
        distributed.leave()
    except (Exception, KeyboardInterrupt) as error:
        own = ending.report(error)
        roll.close()
        if own is None:
            raise SystemExit(_status(error)) from None
        if own is error:
            raise
        raise own from error
    roll.close()


def _limit_s() -> float:
    text = os.environ.get(JOIN_TIMEOUT, str(_JOIN_S))
    try:
        limit_s = float(text)
    except ValueError:
        limit_s = 0
    if not 0 < limit_s <= 1e6:
        raise UsageError(f"environment variable {JOIN_TIMEOUT} is {text!r}, not seconds above 0")
    return limit_s


def _choose_device(place: Place) -> tuple[int, str]:
    """This process's GPU: its number here, and a name that no other GPU of the machine has."""
    if not torch.cuda.is_available():
        return 0, ""
    devices = torch.cuda.device_count()
    # Slurm can show each task the one GPU that is its own.
    index = 0 if place.hosts and devices == 1 else place.local_rank
    if index >= devices:
        raise UsageError(
            f"{place.local_size} processes on this machine, which has {devices} GPUs",
            f"start {devices}",
        )
    torch.cuda.set_device(index)
    return index, str(torch.cuda.get_device_properties(index).uuid)


def _unreachable(place: Place, limit_s: float, error: Exception) -> str:
    where = f"{place.host}:{place.port}"
    if place.rank == 0:
        return f"process 0 of {place.size} cannot wait for the others at {where}: {_line(error)}"
    return (
        f"process {place.rank} of {place.size} (on {place.machine}) found nobody "
        f"at {where}, where process 0 should be, within {limit_s:g} s: {_line(error)}"
    )


def _connect(place: Place, roll: Roll, index: int, limit_s: float) -> None:
    """Form the group, and make sure that what one sends arrives at all.

    It is done in a thread because a library that waits for another machine cannot be stopped.
    """
    if place.size > place.local_size and (interface := _interface(place)) is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    failed: list[Exception] = []

    def work() -> None:
        try:
            cuda = torch.cuda.is_available()
            if cuda:
                torch.cuda.set_device(index)  # each thread has its own
            distributed.connect("nccl" if cuda else "gloo", open_store(place, limit_s), place)
            roll.mark("formed")
            first = torch.ones(1, device="cuda" if cuda else "cpu")
            if float(distributed.total(first)) != place.size:
                raise RuntimeError("a sum over all processes came out wrong")
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=work, name="connect", daemon=True)
    thread.start()
    thread.join(limit_s)
    if failed and roll.lost(_NAMING_S) is None:
        reason = f"cannot join the other processes: {_line(failed[0])}"
        raise RunFailedError(reason, _HELP_NETWORK) from failed[0]
    if failed:
        raise failed[0]
    if thread.is_alive():
        # On the way out nothing may wait for what this thread waits for.
        atexit.register(os._exit, RunFailedError.exit_code)
        behind = roll.behind("formed")
        what = "did not connect to all others" if behind else "did not get the sum of all"
        who = roll.names(behind or range(place.size))
        raise RunFailedError(f"within {limit_s:g} s {who} {what}", _HELP_NETWORK)


def _interface(place: Place) -> str | None:
    """The network interface that leads to the other machines, by name.

    gloo takes the one that this machine's own name leads to, which often is the loopback.
    """
    for target in (place.host, "192.0.2.1"):  # no packet is sent; the second is nowhere (RFC 5737)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((target, place.port))
            except OSError:
                continue
            address = probe.getsockname()[0]
            if address.startswith("127."):
                continue
            for _, name in socket.if_nameindex():
                if _address(probe, name) == address:
                    return name
    return None


def _address(probe: socket.socket, interface: str) -> str | None:
    """The IPv4 address of an interface; None where it has none."""
    try:
        answer = ioctl(probe, 0x8915, struct.pack("256s", interface.encode()))  # SIOCGIFADDR
    except OSError:
        return None
    return socket.inet_ntoa(answer[20:24])


class _Ending:
    """Which process says why all end: the first to have an error of its own; else, where one was
    lost, the first that noticed."""

    def __init__(self, place: Place, roll: Roll) -> None:
        self._place = place
        self._roll = roll

    def report(self, error: BaseException) -> BaseException | None:
        """What this process should report of ``error``, which ends it: None for nothing."""
        if not _is_loss(error):
            return error if self._speaks(_status(error)) else None
        if STATUS_FILE in os.environ:
            return None
        lost = self._roll.lost(_NAMING_S)
        if lost is not None and not lost:
            return None
        own = self._loss(lost, error)
        return own if self._speaks(own.exit_code, lost or frozenset()) else None

    def now(self) -> None:
        """End a process that does not notice that another has gone."""
        lost = self._roll.lost(0)
        own = self._loss(lost, None)
        if lost and STATUS_FILE not in os.environ and self._speaks(own.exit_code, lost):
            print(f"\nerror: {own.message}\nhelp: {own.help}", file=sys.stderr, flush=True)
        self._roll.close()
        os._exit(own.exit_code)

    def _loss(self, lost: frozenset[int] | None, error: BaseException | None) -> RunFailedError:
        if lost:
            who = self._roll.names(sorted(lost))
            what = f"{who} of {self._place.size} ended without a word"
        else:
            why = "" if error is None else f": {_line(error)}"
            what = f"another of the {self._place.size} processes was lost{why}"
        return RunFailedError(what, _HELP_LOST)

    def _speaks(self, status: int, lost: frozenset[int] = frozenset()) -> bool:
        try:
            first = self._roll.is_first()
        except RuntimeError:
            # The store has gone with the process that kept it. If that went without a word, better
            # one process of each machine says so than none.
            first = 0 in lost and (self._place.local_rank == 0 or self._place.rank == 1)
        if first and STATUS_FILE in os.environ:
            Path(os.environ[STATUS_FILE]).write_text(str(status))
        return first


def _status(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 130
    return error.exit_code if isinstance(error, FastclError) else 1


def _is_loss(error: BaseException) -> bool:
    """Whether an error says that a connection to another process broke."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and any(word in str(error) for word in ("gloo", "NCCL", "Connection closed by peer"))
    )


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
