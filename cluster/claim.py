"""One process at a time works in a folder: a lock on a local one, a lease on a storage.

The lock is the kernel's: it ends with its process, however that ends. It holds between machines
that share the folder by NFS 4 or another file system with such locks.

A storage has no locks. A lease is a small file that its holder writes anew every RENEWED_S. Who
finds one waits for EXPIRES_S, is refused if the lease changes, and takes the folder if not: no
clocks are compared. It promises less than a lock. Two processes that start within the same second,
or one that was cut off from the storage for EXPIRES_S, may both work, until one finds the other's
lease: before its next checkpoint, which it does not write.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from itertools import count
from pathlib import Path
from uuid import uuid4

from pyarrow import fs

from metatrain import files, storage
from metatrain.awaiting import awaiting
from metatrain.core import InputError

log = logging.getLogger(__name__)

LOCK, LEASE = ".lock", ".lease.json"  # in the folder
RENEWED_S, EXPIRES_S = 5, 20  # a lease outlives three failures to renew it

Check = Callable[[], None]  # raises InputError if the folder is not this process's any more


@contextmanager
def claimed(uri: str, what: str) -> Iterator[Check]:
    """Refuse a folder in which another process works, and keep others out.

    what: "run" or "sweep", for messages.
    """
    if storage.is_file(uri):
        raise InputError(f"{uri} is a file", remedy="give a folder")
    system, path = storage.filesystem(uri)
    local = isinstance(system, fs.LocalFileSystem)
    with _locked(Path(path), what) if local else _leased(uri, what) as check:
        yield check


@contextmanager
def _locked(folder: Path, what: str) -> Iterator[Check]:
    created = [place for place in (folder, *folder.parents) if not place.exists()]
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _lock(path, folder, what)
    except OSError as error:
        _remove_empty(created)
        reason = f"cannot write to {folder} ({error.strerror or error})"
        raise InputError(reason, remedy="give another output") from error

    def check() -> None:
        if not _is_open(file, path):
            raise InputError(
                f"{folder} was removed or replaced while its {what} was under way",
                remedy=f"start the {what} again",
            )

    try:
        yield check
    finally:
        own = _is_open(file, path)
        if own:
            path.unlink(missing_ok=True)
        file.close()
        if own:
            _remove_empty(created)


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # it holds something
            folder.rmdir()


def _lock(path: Path, folder: Path, what: str) -> FileIO:
    while True:
        file = files.lock_file(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read(200).decode(errors="replace")
            file.close()
            raise _refused(str(folder), what, holder) from None
        except OSError as error:
            log.warning(
                "%s cannot be locked (%s): nothing keeps a second process from it", folder, error
            )
            return file
        if _is_open(file, path):
            break
        file.close()  # its holder removed it, as it ended
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    except OSError:  # such as a full disk
        path.unlink(missing_ok=True)
        file.close()
        raise
    return file


def _is_open(file: FileIO, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


@contextmanager
def _leased(uri: str, what: str) -> Iterator[Check]:
    place, own = f"{uri}/{LEASE}", uuid4().hex
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    before = _read(place)
    if before is not None:
        _outwait(place, before, uri, what)

    renewals = count()

    def renew() -> None:
        at = time.strftime("%FT%TZ", time.gmtime())  # for people
        # Each is as long as the one before: a storage has its size and its bytes in two answers.
        lease = {"id": own, "holder": holder, "at": at, "renewals": f"{next(renewals):09d}"}
        storage.write(place, json.dumps(lease).encode())

    def check() -> None:
        now = _read(place)
        if now is None:
            raise InputError(
                f"{uri} was removed while its {what} was under way",
                remedy=f"start the {what} again",
            )
        if now.get("id") != own:
            raise _refused(uri, what, str(now.get("holder")))

    over = threading.Event()

    def keep() -> None:
        while not over.wait(RENEWED_S):
            # If the storage does not answer, nobody else gets the lease from it either.
            with suppress(InputError):
                check()
                renew()

    renew()
    check()
    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    try:
        yield check
    finally:
        over.set()
        keeper.join(RENEWED_S)  # not longer, if the storage hangs
        with suppress(InputError):
            check()
            storage.remove(place)


def _outwait(place: str, before: dict[str, object], uri: str, what: str) -> None:
    """Wait until a lease has expired; refuse the folder if somebody renews it."""
    holder = before.get("holder")
    at = time.strftime("%H:%M:%S", time.localtime(time.time() + EXPIRES_S))
    with awaiting(
        f"waiting {EXPIRES_S} s, until {at}, for a sign of {holder}, which may work in {uri}"
    ):
        until = time.monotonic() + EXPIRES_S
        while time.monotonic() < until:
            time.sleep(min(1, EXPIRES_S / 10))
            now = _read(place)
            if now is None:
                return
            if now != before:
                raise _refused(uri, what, str(now.get("holder")))


def _read(place: str) -> dict[str, object] | None:
    try:
        lease = json.loads(storage.read(place, storage.MOST_JSON))
    except FileNotFoundError:
        return None
    except InputError:
        raise
    except (ValueError, RecursionError):
        lease = None
    return lease if isinstance(lease, dict) else {}


def _refused(uri: str, what: str, holder: str) -> InputError:
    who = f" ({holder})" if holder else ""
    return InputError(
        f"another process works on the {what} in {uri}{who}", remedy="wait for it, or stop it"
    )
