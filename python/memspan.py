# SPDX-License-Identifier: Apache-2.0
"""Memory that lives elsewhere, mapped as if it were yours.

A *span* is a range of bytes that a memspan daemon keeps. This client talks to
the daemon of this machine, over its unix socket, where a mapping is the span's
very pages: nothing is copied, whatever the size::

    import memspan

    with memspan.connect() as client:
        span = client.alloc(64 << 20, "frame")
        with span.map() as m:
            m.array("float32", (4096, 4096))[:] = 1  # numpy, if it is there
        # other programs see the bytes now: client.open("frame")

A *surface* is bytes exposed once, which never change again. Whoever has its
ticket maps them, or pulls them from another machine through the daemon of his
own, which verifies them::

    ticket = client.expose(pixels, name="frame 7", expires=3600)
    surface = client.pull(ticket)
    surface.view  # a read-only memoryview; surface.array(...) for numpy

One file, Python 3.9 or newer on Linux, nothing but the standard library. All
objects may be used by several threads at once. After a fork the child connects
anew: a connection, its spans and mappings belong to the process that made them
(a child may read and write memory that was mapped before, but only the parent
can flush it). Leave whatever you use by its ``with`` block, or ``close`` it;
what is forgotten is given up with the last reference to it.

The daemon's answers are described in docs/protocol.md and docs/consistency.md.
"""

from __future__ import annotations

import array as _array
import base64
import collections
import fcntl
import itertools
import json
import math
import mmap
import os
import pickle
import socket
import struct
import threading
import time
import weakref
from datetime import datetime, timedelta, timezone
from typing import Any, Callable, Deque, Dict, List, NamedTuple, Optional, Sequence, Tuple, Type, Union

try:
    import numpy
except ImportError:
    numpy = None  # type: ignore[assignment]

__all__ = [
    "connect", "Client", "Span", "Mapping", "Surface", "Commit", "Ticket", "Caveat", "Manifest",
    "READ", "READ_WRITE", "HOST", "VRAM", "DISK", "WRITE_BACK", "WRITE_THROUGH", "WRITE_ALL",
    "Error", "Internal", "Invalid", "NotFound", "Exists", "OutOfRange", "WrongMode", "NotMapped", "Freed",
    "TierAbsent", "Budget", "Limit", "Unauthenticated", "BadVersion", "Conflict", "DataLoss", "PeerLost",
    "Corrupt", "Stalled", "Closed", "Unsupported", "LastCopy", "Pinned", "LockLost", "NotHeld", "Canceled",
    "Debt", "Busy", "WrongState", "TierFailed", "Expired", "Revoked", "Taken",
]

#: What a mapping is for.
READ, READ_WRITE = "read", "read-write"
#: The tiers, where bytes live: RAM, a GPU's memory, files.
HOST, VRAM, DISK = "host", "vram", "disk"
#: Who must hold a change before it is answered: one tier, the span's home too,
#: or every tier that had a copy.
WRITE_BACK, WRITE_THROUGH, WRITE_ALL = "write-back", "write-through", "write-all"


# Errors ---------------------------------------------------------------------

class Error(Exception):
    """Why a request failed. Catch this, or one of the classes below it.

    ``code`` is the protocol's name for the reason, ``op`` what was asked,
    ``span`` the name or id of the span concerned; ``offset`` and ``length`` are
    bytes of it (length 0: no range); ``version`` is the version concerned;
    ``survivor``, of DataLoss, the newest version left; ``message`` says why, and
    what to do about it.
    """

    code = "internal"
    text = "the server failed"

    def __init__(self, message: str = "", *, op: str = "", span: str = "", offset: int = 0, length: int = 0,
                 version: int = 0, survivor: int = 0) -> None:
        self.message, self.op, self.span = message, op, span
        self.offset, self.length, self.version, self.survivor = offset, length, version, survivor
        super().__init__(message)

    def __str__(self) -> str:
        place = " ".join(filter(None, (
            self.op, self.span and "span " + json.dumps(self.span), self.length and f"[{self.offset},+{self.length})")))
        lost = f" (version {self.version}; newest surviving: {self.survivor})" if self.code == DataLoss.code else ""
        return (place and place + ": ") + self.code + ": " + (self.message or self.text) + lost

    def __reduce__(self) -> Tuple[Any, ...]:
        return _unpickle, (type(self), self.__dict__.copy())


def _unpickle(kind: Type[Error], fields: Dict[str, Any]) -> Error:
    return kind(**{name: fields[name] for name in _ERROR_FIELDS})


_ERROR_FIELDS = ("message", "op", "span", "offset", "length", "version", "survivor")


class Internal(Error):
    """A fault of the daemon."""


class Invalid(Error, ValueError):
    """An argument or a message makes no sense."""
    code, text = "invalid", "the request makes no sense"


class NotFound(Error):
    """There is no such span, mapping or surface."""
    code, text = "not-found", "there is no such span, mapping or lock"


class Exists(Error):
    """The name is taken."""
    code, text = "exists", "the name is taken"


class OutOfRange(Error):
    """Bytes beyond the end of the span, mapping or surface."""
    code, text = "out-of-range", "the range is not inside the span"


class WrongMode(Error):
    """The mapping's mode does not allow it."""
    code, text = "wrong-mode", "the mapping's mode does not allow it"


class NotMapped(Error):
    """Unmapped already, or never mapped."""
    code, text = "not-mapped", "unmapped already, or there never was such a mapping"


class Freed(Error):
    """The span was freed, for everybody."""
    code, text = "freed", "the span is gone for everybody"


class TierAbsent(Error):
    """The daemon has no such tier."""
    code, text = "tier-absent", "the server has no such tier"


class Budget(Error):
    """The budget of the tier, or of surfaces, does not hold it."""
    code, text = "budget", "the tier has no room for it"


class Limit(Error):
    """A limit of the daemon or of the protocol was reached."""
    code, text = "limit", "the server allows no more"


class Unauthenticated(Error):
    """Who asks may not, or who answers is not to be trusted."""
    code, text = "unauthenticated", "a valid token or certificate is needed"


class BadVersion(Error):
    """The daemon speaks another version of the protocol."""
    code, text = "bad-version", "the peer speaks another protocol version"


class Conflict(Error):
    """Others changed the same bytes."""
    code, text = "conflict", "others changed the same bytes"


class DataLoss(Error):
    """The last copy of the current version is gone."""
    code, text = "data-loss", "the last copy of the current version is gone"


class PeerLost(Error, ConnectionError):
    """There is no connection to the daemon, or no longer."""
    code, text = "peer-lost", "the connection broke"


class Corrupt(Error):
    """Bytes are not those that were written."""
    code, text = "corrupt", "bytes are not those that were written"


class Stalled(PeerLost):
    """Nothing came from the daemon for too long."""
    code, text = "stalled", "no progress within the i/o timeout"


class Closed(Error):
    """The client or the span was closed, or the daemon is stopping."""
    code, text = "closed", "the server is shutting down"


class Unsupported(Error):
    """This daemon, this client or this system cannot do it."""
    code, text = "unsupported", "this server or system cannot do it"


class LastCopy(Error):
    """The copy is the only one."""
    code, text = "last-copy", "the copy is the only one of its version"


class Pinned(Error):
    """A mapping or an advice keeps the copy in its place."""
    code, text = "pinned", "a mapping keeps the copy in its place"


class LockLost(Error):
    """The connection broke with a lock held."""
    code, text = "lock-lost", "the connection broke while the lock was held: others may have it"


class NotHeld(Error):
    """The lock is not held by this session."""
    code, text = "not-held", "this session does not have the lock"


class Canceled(Error, TimeoutError):
    """The time that the caller gave is over."""
    code, text = "canceled", "the caller gave up"


class Debt(Error):
    """Stored, but the write policy is not met yet; the daemon goes on trying."""
    code, text = "debt", "committed, but the write policy is not met yet"


class Busy(Error):
    """Another write or copy is in the way; it passes."""
    code, text = "busy", "another write or copy is under way here: try again"


class WrongState(Error):
    """The request is not legal now."""
    code, text = "wrong-state", "the request is not legal now"


class TierFailed(Error):
    """The tier takes no more changes: its disk failed."""
    code, text = "tier-failed", "the tier takes no more changes: its disk failed"


class Expired(Error):
    """The time of the surface or of the ticket is over."""
    code, text = "expired", "its time is over"


class Revoked(Error):
    """The surface was taken back."""
    code, text = "revoked", "it was taken back"


class Taken(Error):
    """The surface was for one puller, and another came first."""
    code, text = "taken", "it was for one puller, and another came first"


_ERRORS: Dict[str, Type[Error]] = {
    kind.code: kind for kind in list(globals().values()) if isinstance(kind, type) and issubclass(kind, Error)}
_ERRORS["internal"] = Internal


def _parse_error(data: bytes) -> Error:
    """The error in a reply's JSON; a code that is not known is internal."""
    fields = _parse_json(data, "an error message")

    def number(name: str) -> int:
        value = fields.get(name, 0)
        return value if isinstance(value, int) else 0

    def words(name: str) -> str:
        value = fields.get(name, "")
        return value if isinstance(value, str) else ""

    kind = _ERRORS.get(words("code"), Internal)
    return kind(words("message"), op=words("op"), span=words("span"), offset=number("offset"),
                length=number("length"), version=number("version"), survivor=number("survivor"))


def _parse_json(data: bytes, what: str) -> Dict[str, Any]:
    try:
        value = json.loads(bytes(data).decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise _broken(f"{what} is no JSON: {e}") from None
    if not isinstance(value, dict):
        raise _broken(f"{what} is no JSON object")
    return value


def _broken(what: str) -> PeerLost:
    return PeerLost("the server broke the protocol: " + what)


def _placed(e: Error, op: str, span: str = "", offset: int = 0, length: int = 0) -> Error:
    """A copy of e that says what was asked, where it does not itself; copies
    are raised, because the connection's own error is everybody's."""
    fields = {name: getattr(e, name) for name in _ERROR_FIELDS}
    fields["op"] = fields["op"] or op
    if not fields["span"]:
        fields["span"] = span
        if not fields["length"]:
            fields["offset"], fields["length"] = offset, length
    return type(e)(**fields)


# Frames: docs/protocol.md ----------------------------------------------------

_VERSION = 1
_MAGIC = b"MSPN"
_MAX_DATA = 1 << 20
_MAX_PREFIX = (1 << 20) + 64
_HELLO, _CONTROL, _TRANSFER, _READ, _FLUSH, _EVENT, _STREAM = range(1, 8)
_REPLY, _FAILED, _MORE, _SUM, _FIRST = 1, 2, 4, 8, 16
_RAW, _S2, _FILL = range(3)
_HEADER = struct.Struct("<4sBBBBQIII")  # and the sum of these
_COMMAND = struct.Struct("<IQQQ")
_TRANSFER_MEMORY_DATA, _READ_MEMORY_DATA = 0x10000000, 0x10000001
_U32 = struct.Struct("<I")


def _crc_table() -> List[int]:
    table = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
        table.append(n)
    return table


_CRC = _crc_table()


def _crc32c(data: Any, crc: int = 0) -> int:
    """CRC-32C, of frame headers above all: Python's library has no other. Over
    a unix socket data carries no sums."""
    table = _CRC
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


class _Header(NamedTuple):
    """What begins every frame."""

    kind: int
    flags: int = 0
    encoding: int = _RAW
    id: int = 0
    length: int = 0  # bytes of the payload as sent
    raw: int = 0  # bytes of its data part, decoded
    prefix: int = 0  # bytes of it before the data part

    def encode(self) -> bytes:
        head = _HEADER.pack(_MAGIC, _VERSION, *self)
        return head + _U32.pack(_crc32c(head))


def _parse_header(b: Any) -> _Header:
    """The header in 32 bytes, if it contradicts neither itself nor the limits."""
    if len(b) != 32 or bytes(b[:4]) != _MAGIC:
        raise _broken(f"not a memspan frame: {bytes(b[:4])!r}")
    if b[4] != _VERSION:
        raise BadVersion(f"the server speaks protocol version {b[4]}, this client {_VERSION}: use the same release on both sides")
    if _U32.unpack_from(b, 28)[0] != _crc32c(b[:28]):
        raise _broken("the sum of a header does not match")
    h = _Header(*_HEADER.unpack_from(b)[2:])
    encoded = h.length - h.prefix
    if (h.prefix > _MAX_PREFIX or h.raw > _MAX_DATA or not _HELLO <= h.kind <= _STREAM or h.flags & ~0x1F
            or h.flags & _FAILED and not h.flags & _REPLY or h.flags & _SUM and not h.length
            or not {_RAW: encoded == h.raw, _S2: 0 < encoded < h.raw, _FILL: encoded == 4 < h.raw}.get(h.encoding)):
        raise _broken(f"malformed frame: {h}")
    return h


def _flat(data: Any) -> memoryview:
    """The bytes of anything that has the buffer protocol, in C order, without a
    copy where they lie so."""
    view = memoryview(data)
    if not view.nbytes:
        return memoryview(b"")
    if not view.c_contiguous:
        return memoryview(view.tobytes())
    try:
        return view.cast("B")
    except TypeError:  # a format that memoryview does not know, as numpy has some
        return pickle.PickleBuffer(data).raw()


# The connection ---------------------------------------------------------------

class _Call:
    """A request that is not answered yet."""

    __slots__ = ("kind", "id", "done", "finished", "dest", "reply", "files", "error", "then", "undo", "abandoned", "passes",
                 "sent")

    def __init__(self, kind: int, id: int) -> None:
        self.kind, self.id = kind, id
        self.done = threading.Lock()  # held until the answer is there
        self.done.acquire()
        self.finished = self.abandoned = self.passes = False
        self.sent: List[int] = []  # bytes, piece by piece
        self.dest: Optional[memoryview] = None  # where a read's data goes
        self.reply: Any = None  # of control requests: the JSON object
        self.files: List[int] = []  # descriptors that came with it, if it passes any
        self.error: Optional[Error] = None
        self.then: Optional[Callable[[Dict[str, Any]], None]] = None  # called by the reader, before the next frame
        self.undo: Optional[Tuple[str, str]] = None  # operation and its argument, should nobody want the answer


class _Mapped:
    """What becomes of a mapping, as events tell."""

    def __init__(self) -> None:
        self.error: Optional[Error] = None


# Requests whose answers nobody waits for have ids from here on.
_UNHEARD = 1 << 63

# For how long who cannot send any more waits until what came before is read, in
# seconds.
_LAST_WORD = 1


class _Link:
    """A connection. One thread reads: it is never interrupted in the middle of a
    frame, and neither a full socket nor ^C in one thread holds up the others."""

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self.sock, self.timeout, self.pid = sock, timeout, os.getpid()
        self.error: Optional[Error] = None  # why it is over
        self.stopping: Optional[Error] = None  # the daemon is
        self.mapped: Dict[str, _Mapped] = {}
        self.pending: Dict[int, _Call] = {}
        self._ids = itertools.count(1)
        self._unheard = itertools.count(_UNHEARD)
        self._received = 0  # bytes
        self._over = threading.Event()  # set with error
        self._sending = threading.Lock()
        self._delivery = threading.Lock()  # decides who sees to an answer that its caller gave up
        self._farewells: Deque[Tuple[str, Dict[str, Any]]] = collections.deque()
        # The kernel keeps the time for sends; reads wait for as long as it takes.
        whole = int(timeout)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", whole, int((timeout - whole) * 1e6)))
        self._reader = threading.Thread(target=self._run, name="memspan", daemon=True)

    # Sending

    def mine(self) -> None:
        if os.getpid() != self.pid:
            raise Closed(f"the connection belongs to process {self.pid}: after a fork the child connects anew")
        if self.error is not None:
            raise _placed(self.error, "")

    def call(self, kind: int, *, id: Optional[int] = None, dest: Optional[memoryview] = None) -> _Call:
        c = _Call(kind, next(self._ids) if id is None else id)
        c.dest = dest
        return c

    def send(self, c: _Call, flags: int, prefix: bytes, data: Any = b"", files: Sequence[int] = ()) -> None:
        self.mine()
        self.pending[c.id] = c
        if self.error is not None:  # fail may have missed it
            self.pending.pop(c.id, None)
            self.mine()
        with self._sending:
            self._write(c.kind, flags, c.id, prefix, data, files, sent=c.sent)
        self._drain()

    def _write(self, kind: int, flags: int, id: int, prefix: bytes, data: Any = b"", files: Sequence[int] = (),
               dont_wait: bool = False, sent: Optional[List[int]] = None) -> bool:
        """Sends a frame, and returns whether: False only with dont_wait, if there
        is no room. If a signal's handler raises meanwhile the frame is sent to its
        end first, or not at all: others use the connection, too."""
        data = memoryview(data)
        size = len(data)
        head = memoryview(_Header(kind, flags, _RAW, id, len(prefix) + size, size, len(prefix)).encode() + prefix)
        whole = len(head) + size
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _array.array("i", files))] if files else []
        how = socket.MSG_NOSIGNAL | (socket.MSG_DONTWAIT if dont_wait else 0)
        interrupt: Optional[BaseException] = None
        sent = [] if sent is None else sent
        try:
            while sum(sent) < whole:
                done = sum(sent)
                if done:
                    rights, how = [], socket.MSG_NOSIGNAL
                parts = [head[done:], data] if done < len(head) else [data[done - len(head):]]
                try:
                    # No handler runs between sendmsg and the note of what it sent:
                    # both are called from C, by extend.
                    sent.extend(map(self.sock.sendmsg, [parts], [rights], [how]))
                except BlockingIOError:
                    if dont_wait and not done:
                        return False
                    self.fail(Stalled(f"the server took nothing for {self.timeout:g} s"))
                    self.mine()
                except OSError as e:
                    if dont_wait and not done:
                        return False  # the reader notices, too
                    # What the server sent before it hung up is read first: answers
                    # are among it.
                    if threading.current_thread() is not self._reader:
                        self._over.wait(_LAST_WORD)
                    self.fail(PeerLost(f"sending failed: {e}"))
                    self.mine()
                except BaseException as e:
                    if interrupt is not None or not sent:
                        raise
                    interrupt = e
        finally:
            if 0 < sum(sent) < whole:
                self.fail(Closed("a request was interrupted while it was being sent"))
        if interrupt is not None:
            raise interrupt
        return True

    def farewell(self, op: str, args: Dict[str, Any]) -> None:
        """Sends a request whose answer does not matter. It waits for nothing and
        may be called anywhere, as the garbage collector does."""
        if self.error is None and os.getpid() == self.pid:
            self._farewells.append((op, args))
            self._drain()

    def _drain(self) -> None:
        while self._farewells and self.error is None:
            held: List[bool] = []
            try:
                # As in _write: a handler that raises must not leave the lock taken.
                held.extend(map(self._sending.acquire, [False]))
                if not held[0]:  # whoever has it drains when he is done
                    return
                while self._farewells:
                    op, args = self._farewells.popleft()
                    if not self._write(_CONTROL, 0, next(self._unheard), b"", _request(op, args), dont_wait=True):
                        self._farewells.appendleft((op, args))  # whoever sends next sees to it
                        return
            except Error:
                return  # the connection is over, and with it all that is to be given up
            finally:
                if True in held:
                    self._sending.release()

    # Receiving

    def start(self) -> None:
        self._reader.start()

    def _run(self) -> None:
        try:
            while True:
                self._frame()
        except Error as e:
            self.fail(e if isinstance(e, PeerLost) else PeerLost(str(e)) if not isinstance(e, BadVersion) else e)
        except OSError as e:
            self.fail(PeerLost(f"receiving failed: {e}"))
        except Exception as e:  # a fault of this file; nobody may wait for ever
            self.fail(PeerLost(f"the answer was not understood: {e!r}"))
        with self._sending:
            self.sock.close()

    def _fill(self, view: memoryview, crc: Optional[int] = None) -> int:
        """Receives a payload's bytes; returns their sum if crc is one so far."""
        got, n = 0, len(view)
        while got < n:
            k = self.sock.recv_into(view[got:], 0, socket.MSG_WAITALL)
            if not k:
                raise PeerLost("the server ended the connection in the middle of an answer")
            got += k
            self._received += k
        return _crc32c(view, crc) if crc is not None else 0

    def _receive_header(self) -> Tuple[_Header, List[int]]:
        buffer, files = bytearray(32), _Files()
        view, got = memoryview(buffer), 0
        try:
            while got < 32:
                n, rights, flags, _ = self.sock.recvmsg_into(
                    [view[got:]], socket.CMSG_SPACE(16 * 4), getattr(socket, "MSG_CMSG_CLOEXEC", 0))
                for level, kind, data in rights:
                    if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                        fds = _array.array("i")
                        fds.frombytes(data[:len(data) - len(data) % fds.itemsize])
                        files.extend(fds)
                if flags & socket.MSG_CTRUNC:
                    raise _broken("more descriptors came than can be held; raise the limit (ulimit -n) if it is low")
                if not n:
                    raise PeerLost("the server ended the connection" + (" in the middle of a frame" if got else ""))
                got += n
                self._received += n
            return _parse_header(buffer), files
        except BaseException:
            files.close()
            raise

    def _frame(self) -> None:
        h, files = self._receive_header()
        try:
            self._payload(h, files)
        finally:
            files.close()  # unless the answer's owner took them

    def _payload(self, h: _Header, files: "_Files") -> None:
        if h.encoding != _RAW:
            raise _broken("encoded data, which this client did not ask for")
        c = self.pending.pop(h.id, None) if h.flags & _REPLY and h.id < _UNHEARD else None
        try:
            crc = 0 if h.flags & _SUM else None
            prefix = memoryview(bytearray(h.prefix))
            crc = self._fill(prefix, crc) if crc is not None else self._fill(prefix)
            into = h.kind == _READ and c is not None and not h.flags & _FAILED
            if into and (c.dest is None or len(c.dest) != h.raw):
                raise _broken(f"{h.raw} bytes answer a read")
            data = c.dest if into else memoryview(bytearray(h.raw))
            crc = self._fill(data, crc if h.flags & _SUM else None)
            if h.flags & _SUM:
                want = memoryview(bytearray(4))
                self._fill(want)
                if _U32.unpack(want)[0] != crc:
                    raise _broken("the sum of a payload does not match")
            if c is not None:
                self._answer(c, h, data, files)
            elif h.kind == _EVENT:
                self._event(_parse_json(data, "an event"))
            elif h.flags & _FAILED and h.id == 0:
                e = _parse_error(data)
                raise e if isinstance(e, BadVersion) else PeerLost(f"the server ended the connection: {e}")
            elif h.id < _UNHEARD or not h.flags & _REPLY:
                raise _broken(f"a frame that answers nothing: {h}")
        except BaseException as e:
            if c is not None and not c.finished:  # fail finds it no more
                # A copy: e gets a traceback, whose frames have c.
                self._deliver(c, _placed(e, "") if isinstance(e, Error) else PeerLost(f"receiving failed: {e!r}"))
            raise

    def _answer(self, c: _Call, h: _Header, data: memoryview, files: "_Files") -> None:
        if h.kind != c.kind:
            raise _broken(f"request {c.id} is of kind {c.kind} and was answered as {h.kind}")
        if h.flags & _FAILED:
            self._deliver(c, _parse_error(data))
            return
        if h.kind in (_CONTROL, _HELLO):
            c.reply = _parse_json(data, "an answer")
            if c.then is not None:
                c.then(c.reply)
        if c.passes:
            c.files = files.take()
        self._deliver(c, None)

    def _event(self, e: Dict[str, Any]) -> None:
        message = e.get("message")
        message = message if isinstance(message, str) else ""
        if e.get("event") == "closing":
            self.stopping = Closed(message)
            for m in list(self.mapped.values()):
                m.error = m.error or self.stopping
        elif e.get("event") == "freed":
            m = self.mapped.get(e.get("mapping", ""))
            if m is not None:
                m.error = m.error or Freed(message)

    def _deliver(self, c: _Call, error: Optional[Error]) -> None:
        with self._delivery:
            c.error, c.finished = error, True
        if c.abandoned:
            self._undo(c)
        c.done.release()

    # Waiting

    def wait(self, c: _Call, timeout: Optional[float] = None) -> bool:
        """Waits for an answer. It gives up, and returns False, only after the
        caller's timeout; a daemon from which nothing comes is asked for a sign of
        life first, so requests may take their time."""
        end = math.inf if timeout is None else time.monotonic() + timeout
        seen, asked = self._received, False
        while True:
            left = end - time.monotonic()
            if c.done.acquire(timeout=max(0.0, min(self.timeout, left))):
                return True
            if left <= self.timeout:
                return False
            if self._received != seen:
                seen, asked = self._received, False
            elif not asked:
                asked = True
                self.farewell("cancel", {"request": 0})
            else:
                self.fail(Stalled(f"nothing came from the server for {2 * self.timeout:g} s"))

    def abandon(self, c: _Call) -> None:
        """Gives up a control request: what it makes, should it be carried out all
        the same, is undone."""
        if not c.sent:
            self.pending.pop(c.id, None)
            return
        with self._delivery:
            c.abandoned = True
            finished = c.finished
        if finished:
            self._undo(c)
        else:
            self.farewell("cancel", {"request": c.id})

    def _undo(self, c: _Call) -> None:
        _close_all(c.files)
        if c.undo and c.error is None and c.undo[1] in c.reply:
            self.farewell(c.undo[0], {c.undo[1]: c.reply[c.undo[1]]})

    def ask(self, op: str, args: Dict[str, Any], want: Dict[str, type], *, timeout: Optional[float] = None,
            undo: Optional[Tuple[str, str]] = None, files: Sequence[int] = (), passes: bool = False,
            then: Optional[Callable[[Dict[str, Any]], None]] = None) -> _Call:
        """A control request and its answer, in which the fields of want are. If the
        answer passes descriptors they are the caller's."""
        c = self.call(_CONTROL)
        c.undo, c.then, c.passes = undo, then, passes
        try:
            self.send(c, 0, b"", _request(op, args), files)
            if not self.wait(c, timeout):
                self.farewell("cancel", {"request": c.id})
                self.wait(c)  # what the daemon says to that counts
        except BaseException:
            self.abandon(c)
            raise
        if c.error is not None:
            raise _placed(c.error, op)
        try:
            self.check(c.reply, op, want)
        except Error:
            _close_all(c.files)
            raise
        return c

    def check(self, reply: Any, op: str, want: Dict[str, type]) -> None:
        """Ends the connection to a daemon whose answer lacks fields."""
        for name, kind in want.items():
            if not isinstance(reply, dict) or not isinstance(reply.get(name), kind):
                e = _broken(f"the answer to {op} has no {name}")
                self.fail(e)
                raise _placed(e, op)

    # The end

    def fail(self, e: Error) -> None:
        """Ends the connection; all who wait get e."""
        if self.error is None:
            self.error = e.with_traceback(None)  # whose frames have what others want to be freed
            self._over.set()
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        while self.pending:
            try:
                _, c = self.pending.popitem()
            except KeyError:
                break
            self._deliver(c, self.error)

    def close(self) -> None:
        if os.getpid() != self.pid:  # the parent goes on using it
            self.sock.close()
            return
        self.fail(Closed("the client was closed"))
        if self._reader is not threading.current_thread() and self._reader.ident is not None:
            self._reader.join()


class _Files(List[int]):
    """Descriptors that were received."""

    def take(self) -> List[int]:
        taken = list(self)
        self.clear()
        return taken

    def close(self) -> None:
        _close_all(self.take())


def _close_all(files: Sequence[int]) -> None:
    for fd in files:
        os.close(fd)


def _request(op: str, args: Dict[str, Any]) -> bytes:
    data = json.dumps({"op": op, "args": args}, separators=(",", ":")).encode()
    if len(data) > _MAX_DATA:
        raise Limit(f"a request of {len(data)} bytes: a message has at most {_MAX_DATA}", op=op)
    return data



# Surfaces: tickets and manifests, docs/surface.md -------------------------------

_MAX_SIZE = 1 << 62
_MAX_TEXT = 255
_MAX_TIME = 253402300799999  # 9999-12-31, in ms
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def _time(ms: int) -> Optional[datetime]:
    return _EPOCH + timedelta(milliseconds=ms) if ms else None


class Manifest(NamedTuple):
    """What a surface is: the daemon's word for it, verified against the ticket."""

    id: str  #: 32 hexadecimal digits
    name: str
    content_type: str
    size: int  #: bytes; of a stream that goes on, so far
    chunk: int  #: bytes of each chunk but the last
    count: int  #: chunks
    encrypted: bool  #: what is stored is sealed
    created: Optional[datetime]
    expires: Optional[datetime]  #: None: never
    digests: Tuple[bytes, ...] = ()  #: BLAKE3 of each chunk; pull does not fetch them

    @classmethod
    def parse(cls, data: Any, header: bool = False) -> "Manifest":
        """Reads a manifest's bytes, or with header those before its digests, and
        nothing else; Invalid says what is wrong with them."""
        fixed = struct.Struct("<8sII16s5Q")
        data = memoryview(data).tobytes()
        if len(data) < fixed.size or data[:8] != b"MSPMANIF":
            raise Invalid(f"{len(data)} bytes that are no manifest")
        _, version, flags, id, size, chunk, count, created, expires = fixed.unpack_from(data)
        if version != 1 or flags & ~1:
            raise Invalid(f"a manifest of version {version} with flags {flags:#x}: this client knows version 1")
        at, texts = fixed.size, []
        for _ in range(2):
            n = int.from_bytes(data[at:at + 2], "little")
            text = data[at + 2:at + 2 + n]
            if len(data) < at + 2 or len(text) < n:
                raise Invalid("a manifest that is cut short")
            texts.append(_text(text))
            at += 2 + n
        if size > _MAX_SIZE or not 4 << 10 <= chunk <= 64 << 20 or chunk & chunk - 1 or count != -(-size // chunk):
            raise Invalid(f"a manifest of {count} chunks of {chunk} bytes for {size}")
        if created > _MAX_TIME or expires > _MAX_TIME:
            raise Invalid("a manifest of a time behind the year 9999")
        if len(data) - at != (0 if header else 32 * count):
            raise Invalid(f"a manifest with {len(data) - at} bytes of digests for {count} chunks")
        digests = tuple(data[i:i + 32] for i in range(at, len(data), 32))
        return cls(id.hex(), texts[0], texts[1], size, chunk, count, bool(flags & 1), _time(created), _time(expires), digests)


def _text(data: bytes) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise Invalid("a name or content type that is not UTF-8") from None
    if len(data) > _MAX_TEXT or _controls(text):
        raise Invalid("a name or content type that is too long or has control characters")
    return text


def _controls(text: str) -> bool:
    return any(c < " " or "\x7f" <= c < "\xa0" for c in text)


class Caveat(NamedTuple):
    """Something that a ticket does not open, though its surface has it."""

    range: Optional[Tuple[int, int]]  #: it opens these bytes alone: offset, length
    expires: Optional[datetime]  #: and only before this time


class Ticket(str):
    """What opens a surface: text, to be handed to whoever may have its bytes.

    It is a ``str``, and ``print`` shows it whole; ``repr``, and with it logs and
    tracebacks, show the surface's id alone. ``Ticket(text)`` reads one, and raises
    Invalid if it is none.
    """

    id: str  #: the surface, 32 hexadecimal digits
    addresses: Tuple[str, ...]  #: where it is
    machine: str  #: the boot id of the machine whose ``unix:`` addresses are meant, in hexadecimal; "" if not said
    root: Optional[bytes]  #: BLAKE3 of the manifest; None: it was not sealed yet
    encrypted: bool  #: the ticket has the key to the bytes
    caveats: Tuple[Caveat, ...]

    def __new__(cls, text: str) -> "Ticket":
        if isinstance(text, cls):
            return text
        text = text.strip()
        if len(text) > 8 << 10 or not text.startswith("mst1"):
            raise Invalid("a ticket is a line that begins with mst1, of at most 8 KiB")
        try:
            data = base64.b64decode(text[4:] + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except ValueError:
            data = b""
        if base64.urlsafe_b64encode(data).rstrip(b"=") != text[4:].encode():
            raise Invalid("a ticket that is not base64url")
        if len(data) < 1 + 16 + 32 + 4 or _U32.unpack(data[-4:])[0] != _crc32c(data[:-4]):
            raise Invalid("a ticket that is mistyped or cut short: its sum is wrong")
        if data[0] != 1:
            raise Invalid(f"a ticket of version {data[0]}: this client knows version 1")
        self = super().__new__(cls, text)
        self.id = data[1:17].hex()
        self.machine, self.root, self.encrypted = "", None, False
        self._read(data[49:-4])
        return self

    def _read(self, data: bytes) -> None:
        addresses: List[str] = []
        caveats: List[Caveat] = []
        while data:
            kind, n, size = data[0], 0, 1
            for i, byte in enumerate(data[1:11]):
                n |= (byte & 0x7F) << 7 * i
                size += 1
                if byte < 0x80:
                    break
            else:
                n = len(data)
            body, rest = data[size:size + n], data[size + n:]
            if len(body) < n or size > 2 and not data[size - 1]:
                raise Invalid(f"field {kind} of the ticket is cut short")
            if kind == 1:
                addresses.append(_address(body))
            elif kind == 2 and n == 16 and not self.machine and any(body):
                self.machine = body.hex()
            elif kind == 3 and n == 32 and self.root is None:
                self.root = body
            elif kind == 4 and n == 32 and not self.encrypted:
                self.encrypted = True
            elif kind == 5 and len(caveats) < 32:
                caveats.append(_caveat(body))
            elif kind < 128:
                raise Invalid(f"field {kind} of the ticket, of {n} bytes, is unknown, wrong, or there twice")
            data = rest
        self.addresses, self.caveats = tuple(addresses), tuple(caveats)

    def allowed(self, size: int) -> Tuple[int, int]:
        """The bytes that the ticket opens of a surface of the given size: offset
        and length."""
        begin, end = 0, size
        for offset, length in (c.range for c in self.caveats if c.range):
            begin, end = max(begin, offset), min(end, offset + length)
        return (begin, end - begin) if end > begin else (min(begin, size), 0)

    def __repr__(self) -> str:
        return f"<ticket of surface {self.id}>"

    def __reduce__(self) -> Tuple[Any, ...]:
        return Ticket, (str(self),)

    def __str__(self) -> str:
        return str.__str__(self)


def _address(body: bytes) -> str:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    if not text or len(body) > 512 or _controls(text):
        raise Invalid("an address of the ticket is empty, too long, or not text")
    return text


def _caveat(body: bytes) -> Caveat:
    if len(body) == 17 and body[0] == 1:
        offset, length = struct.unpack_from("<QQ", body, 1)
        if offset <= _MAX_SIZE and length <= _MAX_SIZE:
            return Caveat((offset, length), None)
    elif len(body) == 9 and body[0] == 2:
        ms = int.from_bytes(body[1:], "little")
        if 0 < ms <= _MAX_TIME:
            return Caveat(None, _time(ms))
    raise Invalid("a caveat of the ticket is of an unknown kind, or makes no sense")


# Memory -------------------------------------------------------------------------

class _Memory(mmap.mmap):
    """A mapped range of a descriptor. Views and arrays of it keep it, and it
    keeps what must not go before: ``owner``."""

    owner: Any = None


def _map(fd: int, size: int, offset: int, length: int, writable: bool) -> Tuple[_Memory, int]:
    """Maps a range of a descriptor, and where in the map it begins. Memory that
    its owner could shrink is refused: touching what is gone kills the process."""
    if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        raise _broken("the memory that came is not sealed against shrinking")
    if offset < 0 or length <= 0 or offset + length > size or os.fstat(fd).st_size < size:
        raise _broken(f"the memory that came does not hold bytes [{offset},+{length})")
    lead = offset % mmap.ALLOCATIONGRANULARITY
    prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    return _Memory(fd, length + lead, flags=mmap.MAP_SHARED, prot=prot, offset=offset - lead), lead


_FORMATS = {"bool": "?", "int8": "b", "uint8": "B", "int16": "h", "uint16": "H", "int32": "i", "uint32": "I",
            "int64": "q", "uint64": "Q", "float16": "e", "float32": "f", "float64": "d"}

_Shape = Union[int, Sequence[int], None]


def _as_array(view: memoryview, dtype: Any, shape: _Shape, offset: int) -> Any:
    if numpy is not None:
        item = numpy.dtype(dtype).itemsize
    else:
        form = _FORMATS.get(dtype, dtype)
        try:
            item = struct.calcsize("@" + form)
        except (struct.error, TypeError):
            raise Invalid(f"without numpy the type {dtype!r} is not known; known are {', '.join(_FORMATS)}") from None
    if shape is None:
        shape = ((len(view) - offset) // item if item else 0,)
    elif isinstance(shape, int):
        shape = (shape,)
    size = math.prod(shape) * item
    if offset < 0 or min(shape, default=1) < 0 or offset + size > len(view):
        raise OutOfRange(f"an array of {size} bytes at byte {offset} of {len(view)}", op="array")
    if numpy is not None:
        if not size:
            return numpy.empty(shape, dtype)
        return numpy.asarray(view[offset:offset + size]).view(dtype).reshape(shape)
    if not size:
        raise Invalid("without numpy there are no empty arrays", op="array")
    return view[offset:offset + size].cast(form, list(shape))


class Commit(NamedTuple):
    """What a change of a span came to."""

    version: int  #: of the span: it counts commits
    holders: Tuple[str, ...]  #: the tiers that hold it


def _commit(reply: Dict[str, Any]) -> Commit:
    holders = reply["holders"]
    return Commit(reply["version"], tuple(holders.split(",")) if holders not in ("", "none") else ())


_COMMITTED = {"version": int, "holders": str}


class Mapping:
    """A range of a span as memory: its very pages, shared with all who map them.

    Made by :meth:`Span.map`. Stores are seen at once by others who map the span,
    and by everybody else after :meth:`flush`, which makes a new version of what
    changed. Use it in a ``with`` block: at its end what was stored is flushed, and
    the mapping ends as soon as no view or array of it is left.
    """

    def __init__(self, span: "Span", handle: "_Handle", id: str, state: _Mapped, memory: _Memory, lead: int,
                 offset: int, length: int, mode: str) -> None:
        self._span, self._link, self._id, self._state = span, handle.link, id, state
        self._memory: Optional[_Memory] = memory
        self._lead, self._offset, self._length, self._mode = lead, offset, length, mode
        self._turn = threading.Lock()
        self._over = False
        memory.owner = (span._client, handle)
        self._forget = weakref.finalize(memory, _forget, handle.link, id)

    @property
    def span(self) -> "Span":
        """The span that is mapped."""
        return self._span

    @property
    def offset(self) -> int:
        """Where in the span the mapping begins."""
        return self._offset

    @property
    def mode(self) -> str:
        """READ or READ_WRITE."""
        return self._mode

    def __len__(self) -> int:
        return self._length

    @property
    def view(self) -> memoryview:
        """The bytes: a memoryview of the span's own pages, read-only if the
        mapping is. Byte 0 is byte ``offset`` of the span."""
        memory = self._memory
        if memory is None:
            raise self._failed("view", NotMapped("it was unmapped before"))
        return memoryview(memory)[self._lead:self._lead + self._length]

    def array(self, dtype: Any = "uint8", shape: _Shape = None, offset: int = 0) -> Any:
        """The bytes from ``offset`` of the mapping on as a numpy array; without
        numpy as a memoryview of that type and shape. No byte is copied: storing
        to the array stores to the span. Without a shape: all that fits."""
        return _as_array(self.view, dtype, shape, offset)

    @property
    def error(self) -> Optional[Error]:
        """Why the mapping is, or is about to be, of no use to others: Freed,
        Closed (the daemon is stopping; a flush may still reach it) or PeerLost.
        None while all is well. The memory stays valid."""
        return self._state.error or self._link.error

    def _failed(self, op: str, e: Error) -> Error:
        return _placed(e, op, self._span._label, self._offset, self._length)

    def _range(self, offset: int, length: Optional[int], op: str) -> Dict[str, Any]:
        if self._over:
            raise self._failed(op, NotMapped("it was unmapped before"))
        if offset == 0 and length is None:
            return {"mapping": self._id}
        length = self._length - offset if length is None else length
        if offset < 0 or length <= 0 or offset + length > self._length:
            raise self._failed(op, OutOfRange(f"bytes [{offset},+{length}) of a mapping of {self._length}"))
        return {"mapping": self._id, "ranges": [{"offset": self._offset + offset, "length": length}]}

    def flush(self, offset: int = 0, length: Optional[int] = None) -> Commit:
        """Makes what was stored, to all of the mapping or to ``length`` bytes from
        ``offset`` of it on, a new version for everybody. It returns when the span's
        write policy is met: the span's version, and the tiers that hold it.

        Debt says that it is stored, but not yet where the policy wants it."""
        args = self._range(offset, length, "flush")
        if self._mode == READ:
            raise self._failed("flush", WrongMode("the mapping is read-only"))
        try:
            return _commit(self._link.ask("flush", args, _COMMITTED).reply)
        except Error as e:
            raise self._failed("flush", e) from None

    def invalidate(self, offset: int = 0, length: Optional[int] = None) -> None:
        """Brings what others wrote on another tier, as a GPU does. What is stored
        through other mappings of this machine is there without."""
        args = self._range(offset, length, "invalidate")
        try:
            self._link.ask("invalidate", args, {})
        except Error as e:
            raise self._failed("invalidate", e) from None

    def unmap(self) -> None:
        """Flushes the mapping and ends it. While there are views or arrays of it
        it raises BufferError, and does nothing. If what was stored cannot be
        committed the memory is gone, but the bytes are in the span, and unmap may
        be called again."""
        with self._turn:
            if self._over:
                raise self._failed("unmap", NotMapped("it was unmapped before"))
            if not self._release():
                raise BufferError("the mapping has views or arrays: delete them before unmap, or leave the "
                                  "with block, after which the last of them ends the mapping")
            try:
                self._link.ask("unmap", {"mapping": self._id}, {})
            except Error as e:
                self._over = isinstance(e, (Debt, Freed, NotMapped, NotFound)) or self._link.error is not None
                raise self._failed("unmap", e) from None
            except BaseException:  # a signal's
                self._over = True
                self._link.farewell("unmap", {"mapping": self._id})
                raise
            finally:
                if self._over:
                    self._link.mapped.pop(self._id, None)
            self._over = True
            self._link.mapped.pop(self._id, None)

    def _release(self) -> bool:
        """Gives the memory up, unless somebody has it still. It is never closed:
        not everybody who has it tells it so, as numpy does not always."""
        if self._memory is None:
            return True
        self._forget.detach()
        memory = weakref.ref(self._memory)
        self._memory = None
        left = memory()
        if left is None:
            return True
        self._memory, self._forget = left, weakref.finalize(left, _forget, self._link, self._id)
        return False

    def __enter__(self) -> "Mapping":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._over:
            return
        try:
            self.unmap()
        except BufferError:
            try:
                if self._mode != READ:
                    self.flush()
            finally:
                with self._turn:
                    self._memory, self._over = None, True  # what is left has it

    def __repr__(self) -> str:
        return f"<memspan.Mapping of {self._span._label} [{self._offset},+{self._length}) {self._mode}>"


def _forget(link: _Link, id: str) -> None:
    """Ends a mapping of which nothing is left."""
    link.mapped.pop(id, None)
    link.farewell("unmap", {"mapping": id})


class _Handle:
    """The daemon's handle of a span, closed when neither the Span nor anything
    mapped of it is left: a span without a name lives as long."""

    def __init__(self, link: _Link, text: str) -> None:
        self.link, self.text, self.number = link, text, int(text)
        self.maps: "weakref.WeakSet[_Memory]" = weakref.WeakSet()
        self.forget = weakref.finalize(self, link.farewell, "close", {"handle": text})


class Span:
    """A range of bytes that the daemon keeps. Made by :meth:`Client.alloc` and
    :meth:`Client.open`."""

    def __init__(self, client: "Client", reply: Dict[str, Any]) -> None:
        self._client = client
        self._handle: Optional[_Handle] = _Handle(client._link, reply["handle"])
        self._info = reply["span"]
        self._label = self._info.get("name") or self._info.get("id", "")
        self._gone: Type[Error] = Closed
        self._writing = threading.Lock()  # frames of two writes must not mix

    @property
    def id(self) -> str:
        """32 hexadecimal digits, by which the span can be opened, too."""
        return self._info["id"]

    @property
    def name(self) -> str:
        """The span's name, "" if it has none."""
        return self._info.get("name", "")

    @property
    def size(self) -> int:
        """Bytes."""
        return self._info["size"]

    @property
    def info(self) -> Dict[str, Any]:
        """What never changes about the span: ``id``, ``name``, ``size``, ``tier``,
        ``home``, ``policy``, ``placement``, ``created``."""
        return dict(self._info)

    def _use(self) -> _Handle:
        handle = self._handle
        if handle is None:
            raise self._gone("the span was closed: open it again" if self._gone is Closed else "")
        return handle

    def _ask(self, op: str, want: Dict[str, type], **args: Any) -> _Call:
        try:
            handle = self._use()
            return handle.link.ask(op, {"handle": handle.text, **args}, want)
        except Error as e:
            raise _placed(e, op, self._label) from None

    def _within(self, op: str, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OutOfRange(f"the span has {self.size} bytes", op=op, span=self._label, offset=offset, length=length)

    def map(self, offset: int = 0, length: Optional[int] = None, mode: str = READ_WRITE) -> Mapping:
        """Maps ``length`` bytes from ``offset`` on, or all of the span. No byte
        moves, so a gigabyte is mapped as fast as a page."""
        length = self.size - offset if length is None else length
        self._within("map", offset, length)
        if mode not in (READ, READ_WRITE):
            raise WrongMode(f"the mode is {READ!r} or {READ_WRITE!r}, not {mode!r}", op="map", span=self._label)
        state = _Mapped()
        try:
            handle = self._use()
            link = handle.link

            def known(reply: Dict[str, Any]) -> None:  # to events
                if link.stopping is not None:
                    state.error = link.stopping
                link.mapped[str(reply.get("mapping"))] = state

            c = link.ask("map", {"handle": handle.text, "offset": offset, "length": length, "mode": mode},
                         {"mapping": str, "direct": bool}, undo=("unmap", "mapping"), then=known,
                         passes=True)
            id = c.reply["mapping"]
            try:
                if not c.reply["direct"]:
                    raise Unsupported("the server passes no memory over this connection")
                if len(c.files) != 1 or not isinstance(c.reply.get("size"), int):
                    raise _broken("a mapping without its memory")
                memory, lead = _map(c.files[0], c.reply["size"], offset, length, mode != READ)
            except BaseException as e:
                _forget(link, id)
                if isinstance(e, Error) or not isinstance(e, OSError):
                    raise
                raise Limit(f"the memory could not be mapped: {e}") from e
            finally:
                _close_all(c.files)
        except Error as e:
            raise _placed(e, "map", self._label, offset, length) from e.__cause__
        handle.maps.add(memory)
        return Mapping(self, handle, id, state, memory, lead, offset, length, mode)

    def read(self, offset: int = 0, length: Optional[int] = None) -> bytes:
        """``length`` bytes from ``offset`` on, or all that follow, as a copy."""
        length = self.size - offset if length is None else length
        self._within("read", offset, length)
        buffer = bytearray(length)
        self.readinto(offset, buffer)
        return bytes(buffer)

    def readinto(self, offset: int, buffer: Any) -> None:
        """Fills a writable buffer, a numpy array for example, with bytes from
        ``offset`` on. Each block's part (1 MiB) is of one version."""
        view = memoryview(buffer)
        if view.readonly or not view.c_contiguous:
            raise Invalid("the buffer must be writable and contiguous", op="read", span=self._label)
        view = _flat(view)
        self._within("read", offset, len(view))
        try:
            self._client._read(self._use().number, offset, view)
        except Error as e:
            raise _placed(e, "read", self._label, offset, len(view)) from None

    def write(self, offset: int, data: Any) -> None:
        """Stores anything that has bytes from ``offset`` on, whatever was there. It
        returns when the span's write policy is met. Each block's part is stored
        whole or not at all; with Debt, all is stored."""
        view = _flat(data)
        self._within("write", offset, len(view))
        try:
            handle = self._use()
            with self._writing:
                self._client._write(handle.number, offset, view)
        except Error as e:
            raise _placed(e, "write", self._label, offset, len(view)) from None

    def stat(self) -> Dict[str, Any]:
        """What the daemon knows of the span now: ``version``, ``state``, ``debt``,
        ``tiers`` and more, as docs/protocol.md lists them."""
        return self._ask("stat", {}).reply

    def free(self) -> None:
        """Removes the span, for everybody. Mappings stay memory, but of zeros."""
        self._ask("free", {})
        self._retire(Freed)

    def close(self) -> None:
        """Gives the span up. One without a name is gone with the last who has it
        open; mappings, which stay usable, have it open too."""
        self._retire(Closed)

    def _retire(self, why: Type[Error]) -> None:
        handle, self._handle, self._gone = self._handle, None, why
        if handle is not None and not handle.maps and handle.forget.detach():
            try:
                handle.link.ask("close", {"handle": handle.text}, {})
            except (Freed, NotFound):
                pass
            except Error:
                if handle.link.error is None:
                    raise

    def __enter__(self) -> "Span":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"<memspan.Span {self._label} of {self.size} bytes>"


class Surface:
    """An exposure that was pulled: bytes that never change.

    Made by :meth:`Client.pull`. On the exposer's machine the bytes are the very
    pages that all pullers share. They stay valid for as long as there is a view or
    an array of them, after :meth:`close` too.
    """

    def __init__(self, client: "Client", ticket: Ticket, call: _Call) -> None:
        self._client, self._ticket = client, ticket
        self._link, self._handle = client._link, call.reply["handle"]
        self._forget = weakref.finalize(self, self._link.farewell, "close", {"handle": self._handle})
        self._turn = threading.Lock()
        self._memory: Any = None
        self._file: Optional[weakref.finalize] = None
        self._fd = -1
        self._direct = call.reply["direct"]
        self._root: Optional[bytes] = None
        try:
            try:
                self.manifest = Manifest.parse(_base64(call.reply["header"]), header=True)
            except Invalid as e:
                raise _broken(str(e)) from None
            if self.manifest.encrypted and not ticket.encrypted:
                raise Invalid("the surface is encrypted, and the ticket has no key to it: pull it by one that has")
            if self.manifest.encrypted and self._direct:
                raise _broken("the memory of an encrypted surface instead of its content")
            if self._direct:
                if len(call.files) != 2:
                    raise _broken("a surface without its memory")
                self._fd = call.files.pop(0)
                self._file = weakref.finalize(self, os.close, self._fd)
        except BaseException:
            self._forget()
            raise
        finally:
            _close_all(call.files)
        self._ready, self._sealed = 0, False
        self._take(call.reply["state"])

    def _take(self, state: Dict[str, Any]) -> None:
        """Takes in what is there; of two who wait the later answer may be older."""
        self._link.check(state, "pull", {"sequence": int, "sealed": bool, "size": int, "count": int})
        if not self._sealed:
            grown = state["sealed"] or state["size"] > self.manifest.size
            self.manifest = self.manifest._replace(size=state["size"], count=state["count"]) if grown else self.manifest
        self._sequence, self._sealed = state["sequence"], self._sealed or state["sealed"]
        m = self.manifest
        if self._sealed and isinstance(state.get("root"), str):
            self._root = _base64(state["root"])
        self._begin, self._wanted = self._ticket.allowed(m.size)
        first = self._begin // m.chunk
        for run in state.get("have") or ():
            self._link.check(run, "pull", {"first": int, "n": int})
            if run["first"] <= first < run["first"] + run["n"]:
                end = min((run["first"] + run["n"]) * m.chunk, self._begin + self._wanted)
                self._ready = max(self._ready, end - self._begin)

    manifest: Manifest  #: what the surface is

    @property
    def root(self) -> Optional[bytes]:
        """BLAKE3 of the whole manifest, which the daemon verified the bytes
        against; None while the surface is written."""
        return self._root

    @property
    def offset(self) -> int:
        """Where in the surface :attr:`view` begins: not 0 only by a ticket for a
        range."""
        return self._begin

    @property
    def ready(self) -> int:
        """How many bytes, from ``offset`` on, are known to be there."""
        return self._ready

    @property
    def complete(self) -> bool:
        """Whether the surface is sealed, and all that the ticket opens is there."""
        return self._sealed and self._ready >= self._wanted

    def wait(self, size: Optional[int] = None, timeout: Optional[float] = None) -> int:
        """Waits until ``size`` bytes from ``offset`` on are there, or by default
        all, and returns how many are: fewer only if the surface ended with fewer.
        Canceled after ``timeout`` seconds, Revoked or another error if no more will
        come."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self.complete and (size is None or self._ready < size):
            left = None if end is None else max(0.0, end - time.monotonic())
            args = {"handle": self._handle, "sequence": self._sequence, "from": self._begin // self.manifest.chunk}
            state = self._link.ask("surface-wait", args, {}, timeout=left).reply
            with self._turn:
                self._take(state)
        return self._ready

    @property
    def view(self) -> memoryview:
        """The bytes that are there, ``ready`` of them: a read-only memoryview."""
        with self._turn:
            return self._bytes()

    def _bytes(self) -> memoryview:
        n = self._ready
        if not n:
            return memoryview(b"")
        if not self._direct:
            return self._fetched(n)
        memory, lead, length = self._memory or (None, 0, 0)
        if length < n:  # a stream has grown; views of before keep their own map
            if self._fd < 0:
                raise Closed("the surface was closed", op="view")
            size = self._begin + n
            memory, lead = _map(self._fd, size, self._begin, n, False)
            self._memory = memory, lead, n
            if self.complete and self._file is not None:
                self._file()
                self._fd = -1
        return memoryview(memory)[lead:lead + n]

    def _fetched(self, n: int) -> memoryview:
        """Bytes that the daemon gives by copy: those of a read-once surface, those
        that it decrypts, and those for which a ticket for a range is good."""
        buffer, have = self._memory or (None, 0)
        if have < n:
            grown = mmap.mmap(-1, n)
            if have:
                grown[:have] = buffer[:have]
            with memoryview(grown) as view:
                self._client._read(int(self._handle), self._begin + have, view[have:])
            self._memory = buffer, _ = grown, n
        return memoryview(buffer)[:n].toreadonly()

    def array(self, dtype: Any = "uint8", shape: _Shape = None, offset: int = 0) -> Any:
        """The bytes from ``offset`` of the view on as a read-only numpy array;
        without numpy as a memoryview of that type and shape."""
        return _as_array(self.view, dtype, shape, offset)

    def close(self) -> None:
        """Lets the daemon know that the surface is done with. What was mapped of
        it stays."""
        if self._file is not None:
            self._file()
            self._fd = -1
        if self._forget.detach():
            try:
                self._link.ask("close", {"handle": self._handle}, {})
            except Error:
                if self._link.error is None:
                    raise

    def __enter__(self) -> "Surface":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __len__(self) -> int:
        return self._ready

    def __repr__(self) -> str:
        return f"<memspan.Surface {self.manifest.name or self.manifest.id}, {self._ready} of {self._wanted} bytes>"


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise _broken("a field that is not base64") from None


# How many data frames of one call are under way at a time.
_WINDOW = 16


class Client:
    """A connection to the daemon. Made by :func:`connect`."""

    def __init__(self, link: _Link, welcome: Dict[str, Any]) -> None:
        self._link, self._welcome = link, welcome
        self._block = welcome["block_size"]
        self._closer = weakref.finalize(self, link.close)

    @property
    def tiers(self) -> Tuple[str, ...]:
        """The tiers that the daemon has, fastest first."""
        return tuple(self._welcome["tiers"].split(","))

    @property
    def error(self) -> Optional[Error]:
        """Why the connection is over; None while it lasts."""
        return self._link.error

    # Spans

    def alloc(self, size: int, name: Optional[str] = None, *, tier: str = HOST, home: Optional[str] = None,
              policy: str = WRITE_BACK) -> Span:
        """Makes a span of ``size`` bytes, which read as zeros. One with a name
        stays until it is freed; one without goes with the last who has it open.

        ``tier`` is where writes go, ``home`` (by default the same) where the bytes
        belong, ``policy`` who must hold a change before it is answered."""
        try:
            args = {"size": size, "tier": tier, "home": home or tier, "policy": policy}
            if name:
                args["name"] = name
            return self._opened("alloc", args)
        except Error as e:
            raise _placed(e, "alloc", name or "") from None

    def open(self, name: str) -> Span:
        """Opens the span of that name, or of that id."""
        try:
            return self._opened("open", {"name": name})
        except Error as e:
            raise _placed(e, "open", name) from None

    def _opened(self, op: str, args: Dict[str, Any]) -> Span:
        reply = self._link.ask(op, args, {"handle": str, "span": dict}, undo=("close", "handle")).reply
        self._link.check(reply["span"], op, {"id": str, "size": int})
        return Span(self, reply)

    def list(self) -> List[Dict[str, Any]]:
        """All spans of the daemon, each as :meth:`Span.stat` describes it."""
        spans: List[Dict[str, Any]] = []
        args: Dict[str, Any] = {}
        while True:
            page = self._link.ask("list", args, {}).reply
            found = page.get("spans") or []
            spans += found
            if not page.get("more") or not found:
                return spans
            self._link.check(found[-1], "list", {"id": str})
            args = {"after": found[-1]["id"]}

    def stats(self) -> Dict[str, Any]:
        """The daemon as a whole: blocks, sessions, budgets and more, as
        docs/protocol.md lists them."""
        return self._link.ask("stats", {}, {}).reply

    def _pieces(self, offset: int, size: int) -> List[Tuple[int, int]]:
        at, pieces = 0, []
        while at < size:
            n = min(size - at, self._block - (offset + at) % self._block)
            pieces.append((at, n))
            at += n
        return pieces

    def _read(self, handle: int, offset: int, view: memoryview) -> None:
        link = self._link
        link.mine()
        under: Deque[_Call] = collections.deque()
        error: Optional[Error] = None
        try:
            for at, n in self._pieces(offset, len(view)):
                if len(under) == _WINDOW:
                    error = self._settle(under, error)
                if error is not None:
                    break
                under.append(link.call(_READ, dest=view[at:at + n]))
                link.send(under[-1], 0, _COMMAND.pack(_READ_MEMORY_DATA, handle, offset + at, n))
        finally:
            while under:  # the buffer is the caller's again only then
                error = self._settle(under, error)
        if error is not None:
            raise _placed(error, "")

    def _write(self, handle: int, offset: int, view: memoryview) -> None:
        link = self._link
        link.mine()
        under: Deque[_Call] = collections.deque()
        error: Optional[Error] = None
        pieces = self._pieces(offset, len(view))
        try:
            for i, (at, n) in enumerate(pieces):
                if len(under) == _WINDOW:
                    error = self._settle(under, error)
                if error is not None and not isinstance(error, Debt):
                    break
                under.append(link.call(_TRANSFER))
                flags = (_FIRST if i == 0 else 0) | (_MORE if i < len(pieces) - 1 else 0)
                link.send(under[-1], flags, _COMMAND.pack(_TRANSFER_MEMORY_DATA, handle, offset + at, n), view[at:at + n])
        finally:
            while under:
                error = self._settle(under, error)
        if error is not None:
            raise _placed(error, "")

    def _settle(self, under: Deque[_Call], error: Optional[Error]) -> Optional[Error]:
        """Waits for the oldest answer; a debt is no reason to stop."""
        if not under[0].sent:
            self._link.pending.pop(under.popleft().id, None)
            return error
        self._link.wait(under[0])
        e = under.popleft().error
        return e if e is not None and (error is None or isinstance(error, Debt)) else error

    # Surfaces

    def expose(self, source: Any, *, name: Optional[str] = None, content_type: str = "",
               expires: Union[None, float, timedelta] = None, read_once: bool = False) -> Ticket:
        """Exposes bytes, and returns the ticket with which others pull them.

        ``source`` is anything that has bytes (``bytes``, ``memoryview``, a numpy
        array), which are copied once, a path, or a Span of this client, which the
        daemon copies once. What is exposed never changes. It stays until it is
        revoked, or for ``expires`` seconds (or a timedelta); with ``read_once``
        for one puller, who gets each byte once."""
        args: Dict[str, Any] = {"content_type": content_type} if content_type else {}
        if expires is not None:
            seconds = expires.total_seconds() if isinstance(expires, timedelta) else float(expires)
            if not 0 < seconds < _MAX_TIME / 1000:
                raise Invalid(f"expires is seconds from now on, not {expires!r}", op="expose")
            args["lifetime_ms"] = math.ceil(seconds * 1000)
        if read_once:
            args["read_once"] = True
        files: List[int] = []
        try:
            if isinstance(source, Span):
                args.update(source="span", handle=source._use().text, size=source.size)
                name = source.name if name is None else name
            elif isinstance(source, (str, os.PathLike)):
                path = os.fspath(source)
                files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))  # a pipe is refused, and not waited for
                args.update(source="file", size=os.fstat(files[0]).st_size)
                name = os.path.basename(path) if name is None else name
            else:
                view = _flat(source)
                files.append(_sealed(view))
                args.update(source="memory", size=len(view))
            if name:
                args["name"] = os.fsdecode(name)
            reply = self._link.ask("expose", args, {"id": str, "ticket": str}, files=files, undo=("revoke", "id")).reply
            return Ticket(reply["ticket"])
        except Error as e:
            raise _placed(e, "expose", name or "") from None
        finally:
            _close_all(files)

    def pull(self, ticket: str, *, stream: bool = False, timeout: Optional[float] = None) -> Surface:
        """Opens a surface by its ticket. One of this daemon is mapped where it is;
        the daemon fetches another's, and verifies each chunk. An encrypted one it
        decrypts for this connection, with the ticket's key, and gives by copy:
        Corrupt if the key is not the surface's.

        It returns when all is there, or raises Canceled after ``timeout`` seconds;
        with ``stream`` it returns at once, and :meth:`Surface.wait` waits for as
        much as is needed: of a surface that is still written, too."""
        end = None if timeout is None else time.monotonic() + timeout
        ticket = Ticket(ticket)
        args: Dict[str, Any] = {"ticket": str(ticket)}
        if ticket.encrypted:
            args["decrypt"] = True
        call = self._link.ask("pull", args, {"handle": str, "direct": bool, "header": str, "state": dict},
                              timeout=timeout, undo=("close", "handle"), passes=True)
        surface = Surface(self, ticket, call)
        try:
            if not stream:
                surface.wait(timeout=None if end is None else max(0.0, end - time.monotonic()))
                surface.view  # a copy that is given out once is taken now
        except BaseException:
            surface.close()
            raise
        return surface

    def surfaces(self) -> List[Dict[str, Any]]:
        """The surfaces that the daemon has, with their pullers and more, as
        docs/protocol.md lists them."""
        found: List[Dict[str, Any]] = []
        args: Dict[str, Any] = {}
        while True:
            reply = self._link.ask("surfaces", args, {}).reply
            page = reply.get("surfaces") or []
            known = {s["id"] for s in found}  # one that fails between two pages is in both
            found += [s for s in page if s["id"] not in known]
            args = {"after": reply.get("more")}
            if not page or not args["after"]:
                return found

    def revoke(self, surface: str) -> None:
        """Takes a surface of this daemon back, given its ticket or id: nobody can
        open it any more. Who has mapped it keeps what he has."""
        self._link.ask("revoke", {"id": Ticket(surface).id if surface.startswith("mst1") else surface}, {})

    # The end

    def close(self) -> None:
        """Unmaps what is mapped and ends the connection. Memory of mappings stays
        valid for whoever has views of it, but is nobody's any more."""
        link = self._link
        if link.error is None and os.getpid() == link.pid:
            for id in list(link.mapped):
                try:
                    link.ask("unmap", {"mapping": id}, {})
                except Error:
                    pass  # the daemon commits it with the connection's end
                link.mapped.pop(id, None)
        self._closer()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _sealed(view: memoryview) -> int:
    """A new memfd of these bytes that nobody can change."""
    fd = os.memfd_create("memspan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        done = 0
        while done < len(view):
            done += os.write(fd, view[done:])
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return fd
    except BaseException:
        os.close(fd)
        raise


def _default_path() -> str:
    path = os.environ.get("MEMSPAN_SOCKET")
    if path:
        return path
    directory = os.environ.get("XDG_RUNTIME_DIR")
    return os.path.join(directory, "memspan.sock") if directory else f"/tmp/memspan-{os.getuid()}/memspan.sock"


def connect(path: Union[None, str, "os.PathLike[str]"] = None, *, timeout: float = 30.0) -> Client:
    """Connects to this machine's daemon, by the unix socket at ``path``; by
    default ``$MEMSPAN_SOCKET``, else memspan.sock in ``$XDG_RUNTIME_DIR``, else
    /tmp/memspan-UID/memspan.sock.

    ``timeout`` is for how many seconds the daemon may be silent while something is
    waited for, before it is asked for a sign of life, and again before it is given
    up: requests may take longer, a dead daemon is found out. Raises PeerLost if
    there is none."""
    address = os.fspath(path) if path else _default_path()
    if address.startswith("unix:"):
        address = address[len("unix:"):]
    if "://" in address:
        raise Unsupported(f"{address}: this client speaks to this machine's daemon, by the path of its unix socket", op="connect")
    if not 0 < timeout < threading.TIMEOUT_MAX / 4:
        raise Invalid(f"a timeout of {timeout!r} seconds", op="connect")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(timeout)
        try:
            sock.connect(address)
        except OSError as e:
            if e.errno is None:  # the path is too long for the system
                raise Invalid(f"{address}: {e}", op="connect") from None
            raise PeerLost(f"{address}: no server answers ({e.strerror or e}); start one with: memspan serve", op="connect") from None
        sock.settimeout(None)
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if os.getuid() not in (0, uid) and uid != 0:
            raise Unauthenticated(f"{address}: the server, process {pid}, belongs to user {uid}, not to you "
                                  f"({os.getuid()}) or root", op="connect")
        link = _Link(sock, timeout)
    except BaseException:
        sock.close()
        raise
    link.start()
    try:
        hello = link.call(_HELLO, id=0)
        link.send(hello, 0, b"", json.dumps({"protocol": _VERSION, "client": "python"}).encode())
        link.wait(hello)
        if hello.error is not None:
            raise _placed(hello.error, "connect")
        welcome = hello.reply
        link.check(welcome, "hello", {"protocol": int, "block_size": int, "tiers": str})
        block = welcome["block_size"]
        if welcome["protocol"] != _VERSION:
            raise BadVersion(f"the server speaks protocol version {welcome['protocol']}, this client {_VERSION}", op="connect")
        if not 4096 <= block <= _MAX_DATA or block & block - 1:
            raise _placed(_broken(f"blocks of {block} bytes"), "connect")
        return Client(link, welcome)
    except BaseException:
        link.close()
        raise
