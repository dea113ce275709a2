# SPDX-License-Identifier: Apache-2.0
"""Tests of memspan.py, against a daemon at $MEMSPAN_SOCKET: test/e2e runs them.

    MEMSPAN_SOCKET=... python3 -m unittest discover -s python
"""

import array
import base64
import contextlib
import copy
import faulthandler
import gc
import hashlib
import hmac
import itertools
import json
import os
import pathlib
import pickle
import random
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import unittest

import memspan

if os.environ.get("MEMSPAN_TEST_NO_NUMPY"):
    memspan.numpy = None
numpy = memspan.numpy

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MIB = 1 << 20


def setUpModule():
    faulthandler.dump_traceback_later(300, exit=True)  # what hangs says where


def tearDownModule():
    faulthandler.cancel_dump_traceback_later()


def vector(path):
    """The bytes of a file of hexadecimal digits, in which # begins a comment."""
    with open(path, encoding="utf-8") as f:
        return bytes.fromhex("".join(line.split("#")[0] for line in f))


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def pattern(size, seed=1):
    return bytes((i * 7 + i // 256 + seed) & 0xFF for i in range(size))


_names = itertools.count()


class DaemonTest(unittest.TestCase):
    """Has a client of a real daemon."""

    def setUp(self):
        if "MEMSPAN_SOCKET" not in os.environ:
            self.skipTest("MEMSPAN_SOCKET names no daemon")
        self.client = memspan.connect()
        self.addCleanup(self.client.close)

    def name(self):
        return f"python-{os.getpid()}-{next(_names)}"

    def alloc(self, size=4 * MIB + 123, **options):
        span = self.client.alloc(size, self.name(), **options)

        def free():
            with contextlib.suppress(memspan.Error):
                span.free()
        self.addCleanup(free)
        return span

    def eventually(self, condition, what):
        for _ in range(2000):
            if condition():
                return
            time.sleep(0.005)  # there is nothing that could be waited for
        self.fail(what)


class Vectors(unittest.TestCase):
    """The protocol's test vectors, byte for byte."""

    directory = os.path.join(REPOSITORY, "wire", "testdata", "vectors")

    def load(self, name):
        return vector(os.path.join(self.directory, name + ".hex"))

    def sent(self, id, send):
        """What a connection sends for a request with that id."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        link = memspan._Link(ours, 30)
        link._ids = itertools.count(id)
        send(link)
        ours.shutdown(socket.SHUT_WR)
        data = b"".join(iter(lambda: theirs.recv(65536), b""))
        ours.close()
        theirs.close()
        return data

    def received(self, name, kind, id, **call):
        """What a connection makes of an answer."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        link = memspan._Link(ours, 30)
        c = link.call(kind, id=id, **call)
        link.pending[id] = c
        link.start()
        theirs.sendall(self.load(name))
        self.assertTrue(link.wait(c, 30))
        link.close()
        theirs.close()
        return c

    def test_every_header(self):
        for file in sorted(os.listdir(self.directory)):
            if not file.endswith(".hex") or file == "version-2.hex":
                continue
            with self.subTest(file):
                data = vector(os.path.join(self.directory, file))
                h = memspan._parse_header(data[:32])
                self.assertEqual(h.encode(), data[:32])
                if file != "header.hex":
                    self.assertEqual(len(data), 32 + h.length + (4 if h.flags & memspan._SUM else 0))

    def test_version_2(self):
        with self.assertRaises(memspan.BadVersion):
            memspan._parse_header(self.load("version-2")[:32])

    def test_any_changed_bit_of_a_header_is_found(self):
        good = self.load("header")
        for bit in range(8 * len(good)):
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            with self.assertRaises(memspan.Error):
                memspan._parse_header(bad)

    def test_hello(self):
        hello = self.sent(1, lambda link: link.send(link.call(memspan._HELLO), 0, b"", b'{"protocol":1}'))
        self.assertEqual(hello, self.load("hello"))

    def test_transfer(self):
        command = memspan._COMMAND.pack(memspan._TRANSFER_MEMORY_DATA, 0x0123456789ABCDEF, 4096, 8)
        data = bytes.fromhex("7856341278563412")
        sent = self.sent(8, lambda link: link.send(link.call(memspan._TRANSFER), 0, command, data))
        self.assertEqual(sent, self.load("transfer"))
        self.assertIsNone(self.received("transfer-reply", memspan._TRANSFER, 8).error)

    def test_transfer_sum(self):
        data = self.load("transfer-sum")
        self.assertEqual(struct.unpack("<I", data[-4:])[0], memspan._crc32c(data[32:-4]))
        self.assertEqual(memspan._crc32c(data[60:-4], memspan._crc32c(data[32:60])), memspan._crc32c(data[32:-4]))
        self.assertEqual(memspan._crc32c(b"123456789"), 0xE3069283)

    def test_read(self):
        command = memspan._COMMAND.pack(memspan._READ_MEMORY_DATA, 0x0123456789ABCDEF, 4096, 8)
        self.assertEqual(self.sent(9, lambda link: link.send(link.call(memspan._READ), 0, command)), self.load("read"))
        buffer = bytearray(8)
        c = self.received("read-reply", memspan._READ, 9, dest=memoryview(buffer))
        self.assertIsNone(c.error)
        self.assertEqual(buffer.hex(), "7856341278563412")

    def test_error(self):
        e = self.received("error", memspan._READ, 9, dest=memoryview(bytearray(8))).error
        self.assertIsInstance(e, memspan.OutOfRange)
        self.assertEqual((e.op, e.span, e.offset, e.length, e.version), ("read", "x", 4096, 8, 3))

    def test_encodings_that_were_not_asked_for(self):
        for name in ("fill", "s2"):
            e = self.received(name, memspan._READ, 9, dest=memoryview(bytearray(8))).error
            self.assertIsInstance(e, memspan.PeerLost)


class Peer:
    """The other end of a client's connection: a daemon that does what a test says."""

    def __init__(self, test, timeout=30.0, greet=True):
        self.test = test
        self.directory = tempfile.TemporaryDirectory()
        test.addCleanup(self.directory.cleanup)
        path = os.path.join(self.directory.name, "s")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen(1)
        self.client = self.error = None
        dialer = threading.Thread(target=self.dial, args=(path, timeout))
        dialer.start()
        self.sock, _ = listener.accept()
        listener.close()
        self.sock.settimeout(30)
        test.addCleanup(self.sock.close)
        h, _, data = self.frame()
        self.hello = json.loads(data)
        if greet:
            self.reply(h, {"protocol": 1, "session": "1", "block_size": MIB, "tiers": "host", "direct": True})
            dialer.join()
        self.dialer = dialer

    def dial(self, path, timeout):
        try:
            self.client = memspan.connect(path, timeout=timeout)
            self.test.addCleanup(self.client.close)
        except memspan.Error as e:
            self.error = e

    def exactly(self, n):
        data = b""
        while len(data) < n:
            piece = self.sock.recv(n - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def frame(self):
        h = memspan._parse_header(self.exactly(32))
        return h, self.exactly(h.prefix), self.exactly(h.raw)

    def request(self):
        h, _, data = self.frame()
        return h, json.loads(data)

    def reply(self, h, value, files=(), flags=memspan._REPLY, kind=None):
        self.send(kind or h.kind, flags, h.id, b"", json.dumps(value).encode(), files)

    def send(self, kind, flags, id, prefix, data, files=()):
        head = memspan._Header(kind, flags, 0, id, len(prefix) + len(data), len(data), len(prefix)).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
        self.sock.sendmsg([head + prefix + data], rights)

    def opened(self, size=MIB, handle="7"):
        """Has the client open a span of this daemon."""
        spans = []
        t = threading.Thread(target=lambda: spans.append(self.client.open("x")))
        t.start()
        h, _ = self.request()
        self.reply(h, {"handle": handle, "span": {"id": "0" * 32, "name": "x", "size": size}})
        t.join()
        return spans[0]

    def asking(self, ask):
        """Runs ask in a thread; returns a function that waits for what it raised."""
        outcome = []

        def run():
            try:
                ask()
                outcome.append(None)
            except BaseException as e:
                outcome.append(e)
        t = threading.Thread(target=run)
        t.start()

        def result():
            t.join(30)
            self.test.assertFalse(t.is_alive(), "the client hangs")
            return outcome[0]
        return result


class HostileDaemon(unittest.TestCase):
    """What breaks the protocol's rules ends the connection, and hangs nobody."""

    def ends(self, answer, ask=lambda client: client.stats(), error=memspan.PeerLost):
        peer = Peer(self)
        result = peer.asking(lambda: ask(peer.client))
        h, _, _ = peer.frame()
        answer(peer, h)
        self.assertIsInstance(result(), error)
        with self.assertRaises(error):
            peer.client.stats()  # for good

    def test_garbage(self):
        self.ends(lambda peer, h: peer.sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 3))

    def test_another_version(self):
        self.ends(lambda peer, h: peer.sock.sendall(b"MSPN\x02" + b"\xff" * 27), error=memspan.BadVersion)

    def test_the_end(self):
        self.ends(lambda peer, h: peer.sock.shutdown(socket.SHUT_WR))

    def test_an_answer_before_the_end(self):
        # It counts, also if another thread finds first that nothing can be sent.
        for _ in range(30):
            peer = Peer(self)

            def ask_on():
                while True:
                    peer.client.list()

            busy = [peer.asking(ask_on) for _ in range(3)]
            result = peer.asking(lambda: peer.client.stats())
            while True:
                h, request = peer.request()
                if request["op"] == "stats":
                    break
                peer.reply(h, {"spans": []})
            peer.reply(h, {})
            peer.sock.close()
            error = result()
            self.assertIsNone(error)
            for one in busy:
                self.assertIsInstance(one(), memspan.PeerLost)

    def test_the_end_within_a_header(self):
        def answer(peer, h):
            peer.sock.sendall(memspan._Header(2, 1, 0, h.id, 2, 2).encode()[:20])
            peer.sock.shutdown(socket.SHUT_WR)
        self.ends(answer)

    def test_the_end_within_an_answer(self):
        def answer(peer, h):
            peer.sock.sendall(memspan._Header(2, 1, 0, h.id, 2, 2).encode() + b"{")
            peer.sock.shutdown(socket.SHUT_WR)
        self.ends(answer)

    def test_an_answer_to_nothing(self):
        self.ends(lambda peer, h: peer.reply(h._replace(id=4711), {}))

    def test_an_answer_of_another_kind(self):
        self.ends(lambda peer, h: peer.reply(h, {}, kind=memspan._READ))

    def test_no_json(self):
        for data in (b"", b"{", b"[]", b"\xff\xfe", b"[" * 100000):
            with self.subTest(data[:8]):
                self.ends(lambda peer, h: peer.send(h.kind, memspan._REPLY, h.id, b"", data))

    def test_fields_that_are_missing(self):
        for reply in ({}, {"handle": 7, "span": {}}, {"handle": "7"}, {"handle": "7", "span": {"id": "x", "size": "1"}}):
            with self.subTest(reply):
                self.ends(lambda peer, h: peer.reply(h, reply), lambda client: client.open("x"))

    def test_a_read_of_another_length(self):
        peer = Peer(self)
        span = peer.opened()
        result = peer.asking(lambda: span.read(0, 8))
        h, _, _ = peer.frame()
        peer.send(h.kind, memspan._REPLY, h.id, b"\0" * 4, b"123456789")
        self.assertIsInstance(result(), memspan.PeerLost)

    def test_a_wrong_sum(self):
        def answer(peer, h):
            head = memspan._Header(h.kind, memspan._REPLY | memspan._SUM, 0, h.id, 2, 2).encode()
            peer.sock.sendall(head + b"{}" + b"\0\0\0\0")
        self.ends(answer)

    def test_a_right_sum(self):
        peer = Peer(self)
        result = peer.asking(peer.client.stats)
        h, _ = peer.request()
        head = memspan._Header(h.kind, memspan._REPLY | memspan._SUM, 0, h.id, 2, 2).encode()
        peer.sock.sendall(head + b"{}" + struct.pack("<I", memspan._crc32c(b"{}")))
        self.assertIsNone(result())

    def test_an_error_without_a_request(self):
        def answer(peer, h):
            peer.reply(h._replace(id=0), {"code": "invalid", "message": "what was that"}, flags=3)
        peer = Peer(self)
        result = peer.asking(peer.client.stats)
        h, _ = peer.request()
        answer(peer, h)
        self.assertIn("what was that", str(result()))

    def test_descriptors_nobody_asked_for_are_closed(self):
        peer = Peer(self)
        before = descriptors()
        for files in [[0] * 16] * 50 + [[]]:
            result = peer.asking(peer.client.stats)
            h, _ = peer.request()
            peer.reply(h, {}, files=files)
            self.assertIsNone(result())
        self.assertEqual(descriptors(), before)

    def test_memory_that_could_shrink_is_refused(self):
        peer = Peer(self)
        span = peer.opened()
        before = descriptors()
        with tempfile.TemporaryFile() as f:
            f.truncate(MIB)
            result = peer.asking(span.map)
            h, _ = peer.request()
            peer.reply(h, {"mapping": "9", "direct": True, "size": MIB}, files=[f.fileno()])
            e = result()
        self.assertIsInstance(e, memspan.Error)
        self.assertEqual(descriptors(), before)

    def test_memory_that_is_short_is_refused(self):
        peer = Peer(self)
        span = peer.opened()
        fd = memspan._sealed(memoryview(b"short"))
        result = peer.asking(lambda: span.map(mode=memspan.READ))
        h, _ = peer.request()
        peer.reply(h, {"mapping": "9", "direct": True, "size": MIB}, files=[fd])
        os.close(fd)
        self.assertIn("does not hold", str(result()))
        self.assertEqual(peer.request()[1], {"op": "unmap", "args": {"mapping": "9"}})

    def test_a_mapping_without_memory(self):
        peer = Peer(self)
        span = peer.opened()
        result = peer.asking(span.map)
        h, _ = peer.request()
        peer.reply(h, {"mapping": "9", "direct": True, "size": MIB})
        self.assertIsInstance(result(), memspan.PeerLost)

    def test_refusals_of_the_greeting(self):
        for code, kind in (("limit", memspan.Limit), ("closed", memspan.Closed), ("bad-version", memspan.BadVersion)):
            peer = Peer(self, greet=False)
            peer.send(memspan._HELLO, 3, 0, b"", json.dumps({"code": code, "message": "no"}).encode())
            peer.dialer.join(30)
            self.assertIsInstance(peer.error, kind)

    def test_a_welcome_that_makes_no_sense(self):
        for change in ({"protocol": 2}, {"block_size": 3}, {"block_size": "x"}, {"tiers": None}):
            peer = Peer(self, greet=False)
            welcome = {"protocol": 1, "session": "1", "block_size": MIB, "tiers": "host", "direct": True, **change}
            peer.send(memspan._HELLO, 1, 0, b"", json.dumps(welcome).encode())
            peer.dialer.join(30)
            self.assertIsInstance(peer.error, memspan.Error)


class Waiting(unittest.TestCase):
    """Every wait ends, and what nobody waits for any more is given back."""

    def test_a_silent_daemon(self):
        peer = Peer(self, timeout=0.2)
        result = peer.asking(peer.client.stats)
        self.assertEqual(peer.request()[1]["op"], "stats")
        self.assertEqual(peer.request()[1], {"op": "cancel", "args": {"request": 0}})  # a sign of life
        self.assertIsInstance(result(), memspan.Stalled)
        self.assertIsInstance(peer.client.error, memspan.PeerLost)

    def test_a_request_may_take_its_time(self):
        peer = Peer(self, timeout=0.2)
        result = peer.asking(peer.client.stats)
        first, _ = peer.request()
        for _ in range(3):
            h, request = peer.request()
            self.assertEqual(request["op"], "cancel")
            peer.reply(h, {})
        peer.reply(first, {})
        self.assertIsNone(result())

    def test_a_daemon_that_takes_nothing(self):
        peer = Peer(self, timeout=0.2)
        span = peer.opened(64 * MIB)
        self.assertIsInstance(peer.asking(lambda: span.write(0, bytes(64 * MIB)))(), memspan.Stalled)

    def test_interrupted_in_a_request(self):
        peer = Peer(self)
        raised = []
        main = threading.main_thread().ident

        def daemon():
            h, request = peer.request()
            raised.append(request["op"])
            while sys._current_frames()[main].f_code.co_name != "wait":
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)
            cancel, request = peer.request()
            raised.append(request)
            peer.reply(h, {"handle": "7", "span": {"id": "0" * 32, "size": 1}})  # too late, and made all the same
            peer.reply(cancel, {})
            raised.append(peer.request()[1])
        t = threading.Thread(target=daemon)
        t.start()
        with self.assertRaises(KeyboardInterrupt):
            peer.client.open("x")
        t.join(30)
        self.assertEqual(raised[0], "open")
        self.assertEqual(raised[1]["op"], "cancel")
        self.assertEqual(raised[2], {"op": "close", "args": {"handle": "7"}})
        self.assertIsNone(peer.client.error)  # it goes on

    def test_interrupted_twice_in_a_frame(self):
        peer = Peer(self)
        span = peer.opened(64 * MIB)
        main, over = threading.main_thread().ident, threading.Event()

        def bang(*_):
            if not over.is_set():
                raise Signals.Bang
        self.addCleanup(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, bang))

        def insist():  # while nobody reads the frame
            while sys._current_frames()[main].f_code.co_name != "_write":
                time.sleep(0.001)
            while not over.wait(0.01):
                os.kill(os.getpid(), signal.SIGALRM)
        t = threading.Thread(target=insist)
        t.start()
        try:
            span.write(0, bytes(64 * MIB))
            self.fail("it was not interrupted")
        except Signals.Bang:
            pass
        finally:
            over.set()
            t.join(30)
        self.assertIsInstance(peer.client.error, memspan.Closed)  # half a frame is on its way

    def test_what_is_given_up_while_somebody_sends(self):
        peer = Peer(self, timeout=3600)
        link = peer.client._link
        with link._sending:
            link.farewell("close", {"handle": "3"})  # as the garbage collector does, which must not wait
        result = peer.asking(peer.client.stats)
        h, request = peer.request()
        self.assertEqual(request["op"], "stats")
        self.assertEqual(peer.request()[1], {"op": "close", "args": {"handle": "3"}})
        peer.reply(h, {})
        self.assertIsNone(result())

    def test_pieces(self):
        """A write is cut at blocks' boundaries, and says where it begins and ends."""
        peer = Peer(self)
        span = peer.opened(8 * MIB)
        result = peer.asking(lambda: span.write(MIB - 5, bytes(2 * MIB + 7)))
        for offset, size, flags in ((MIB - 5, 5, memspan._FIRST | memspan._MORE), (MIB, MIB, memspan._MORE),
                                    (2 * MIB, MIB, memspan._MORE), (3 * MIB, 2, 0)):
            h, prefix, data = peer.frame()
            self.assertEqual((h.kind, h.flags), (memspan._TRANSFER, flags))
            self.assertEqual(memspan._COMMAND.unpack(prefix), (memspan._TRANSFER_MEMORY_DATA, 7, offset, size))
            self.assertEqual(len(data), size)
            peer.send(h.kind, memspan._REPLY, h.id, b"\0" * 4, b"")
        self.assertIsNone(result())

    def test_a_debt_stops_no_write(self):
        peer = Peer(self)
        span = peer.opened(8 * MIB)
        result = peer.asking(lambda: span.write(0, bytes(2 * MIB)))
        for error in ({"code": "debt", "message": "later"}, None):
            h, _, _ = peer.frame()
            flags = memspan._REPLY | (memspan._FAILED if error else 0)
            peer.send(h.kind, flags, h.id, b"\0" * 4, json.dumps(error).encode() if error else b"")
        self.assertIsInstance(result(), memspan.Debt)

    def test_events(self):
        peer = Peer(self)
        span = peer.opened()
        fd = memspan._sealed(memoryview(bytes(MIB)))
        result = []
        done = peer.asking(lambda: result.append(span.map(mode=memspan.READ)))
        h, _ = peer.request()
        peer.reply(h, {"mapping": "9", "direct": True, "size": MIB}, files=[fd])
        os.close(fd)
        peer.send(memspan._EVENT, 0, 0, b"", b'{"event":"unknown"}')
        peer.send(memspan._EVENT, 0, 0, b"", b'{"event":"freed","mapping":"9","message":"gone"}')
        self.assertIsNone(done())
        mapping, = result
        ping = peer.asking(peer.client.stats)
        h, _ = peer.request()
        peer.reply(h, {})
        ping()
        self.assertIsInstance(mapping.error, memspan.Freed)


class Connecting(unittest.TestCase):
    def test_no_daemon(self):
        with tempfile.TemporaryDirectory() as d:
            with self.assertRaisesRegex(memspan.PeerLost, "start one with: memspan serve") as caught:
                memspan.connect(os.path.join(d, "s"))
        self.assertIsInstance(caught.exception, ConnectionError)

    def test_addresses(self):
        with self.assertRaises(memspan.Unsupported):
            memspan.connect("tcp://127.0.0.1:7070")
        with self.assertRaises(memspan.Invalid):
            memspan.connect("/" + "x" * 200)
        for timeout in (0, -1, float("nan"), float("inf")):
            with self.assertRaises(memspan.Invalid):
                memspan.connect("/nowhere", timeout=timeout)

    def test_default_path(self):
        saved = dict(os.environ)
        try:
            os.environ["MEMSPAN_SOCKET"] = "/x/y"
            self.assertEqual(memspan._default_path(), "/x/y")
            del os.environ["MEMSPAN_SOCKET"]
            os.environ["XDG_RUNTIME_DIR"] = "/run/user/7"
            self.assertEqual(memspan._default_path(), "/run/user/7/memspan.sock")
            del os.environ["XDG_RUNTIME_DIR"]
            self.assertEqual(memspan._default_path(), f"/tmp/memspan-{os.getuid()}/memspan.sock")
        finally:
            os.environ.clear()
            os.environ.update(saved)


class Errors(unittest.TestCase):
    def test_every_code_has_its_class(self):
        with open(os.path.join(REPOSITORY, "docs", "protocol.md"), encoding="utf-8") as f:
            rows = [line.split("|") for line in f if line.startswith("| ")]
        codes = [row[2].strip() for row in rows if len(row) == 6 and row[1].strip().isdigit() and "VkResult" not in row[2]
                 and row[4].strip().startswith("−")]
        self.assertGreater(len(codes), 28)
        for code in codes:
            e = memspan._parse_error(json.dumps({"code": code, "message": "m"}).encode())
            self.assertEqual(e.code, code)
            self.assertEqual(type(e).__name__.lower(), code.replace("-", ""))
            self.assertIn(type(e).__name__, memspan.__all__)

    def test_what_they_say(self):
        e = memspan._parse_error(b'{"code":"conflict","op":"flush","span":"x","offset":0,"length":4096,"version":3,'
                                 b'"message":"the same bytes were changed since version 3"}')
        self.assertEqual(str(e), 'flush span "x" [0,+4096): conflict: the same bytes were changed since version 3')
        self.assertEqual(str(memspan.NotFound(op="open", span="x")),
                         'open span "x": not-found: there is no such span, mapping or lock')

    def test_codes_from_a_newer_daemon(self):
        e = memspan._parse_error(b'{"code":"new","message":"m","offset":"x","more":1}')
        self.assertIsInstance(e, memspan.Internal)
        self.assertEqual(e.offset, 0)

    def test_versions_are_integers(self):
        e = memspan._parse_error(b'{"code":"debt","version":18446744073709551615}')
        self.assertEqual(e.version, 2**64 - 1)

    def test_they_travel(self):
        for kind in (memspan.Conflict, memspan.PeerLost, memspan.Canceled, memspan.Invalid):
            e = kind("m", op="flush", span="x", offset=1, length=2, version=3)
            for again in (pickle.loads(pickle.dumps(e)), copy.copy(e)):
                self.assertIs(type(again), kind)
                self.assertEqual(str(again), str(e))
                self.assertEqual(again.version, 3)

    def test_they_are_pythons_too(self):
        self.assertTrue(issubclass(memspan.Canceled, TimeoutError))
        self.assertTrue(issubclass(memspan.PeerLost, ConnectionError))
        self.assertTrue(issubclass(memspan.Invalid, ValueError))


class Spans(DaemonTest):
    def test_alloc_open_list_stat(self):
        span = self.alloc(3 * MIB, policy=memspan.WRITE_THROUGH)
        again = self.client.open(span.name)
        self.assertEqual((again.id, again.size, len(again)), (span.id, 3 * MIB, 3 * MIB))
        self.assertEqual(self.client.open(span.id).name, span.name)
        self.assertEqual(span.info["policy"], "write-through")
        self.assertIn(span.id, [s["id"] for s in self.client.list()])
        span.write(0, b"x")
        self.assertGreaterEqual(span.stat()["version"], 1)
        self.assertGreaterEqual(self.client.stats()["sessions"], 1)
        self.assertIn("host", self.client.tiers)

    def test_list_goes_on(self):
        spans = [self.alloc(1) for _ in range(300)]
        self.assertLessEqual({s.id for s in spans}, {s["id"] for s in self.client.list()})

    def test_refusals(self):
        span = self.alloc()
        for kind, ask in (
            (memspan.NotFound, lambda: self.client.open("no such span")),
            (memspan.Exists, lambda: self.client.alloc(1, span.name)),
            (memspan.Invalid, lambda: self.client.alloc(0)),
            (memspan.Invalid, lambda: self.client.alloc(1, tier="cloud")),
            (memspan.OutOfRange, lambda: span.read(span.size, 1)),
            (memspan.OutOfRange, lambda: span.read(-1, 1)),
            (memspan.OutOfRange, lambda: span.write(span.size - 1, b"xx")),
            (memspan.OutOfRange, lambda: span.map(1, span.size)),
            (memspan.WrongMode, lambda: span.map(mode="rw")),
            (memspan.Invalid, lambda: span.readinto(0, b"read-only")),
        ):
            with self.assertRaises(kind) as caught:
                ask()
            self.assertTrue(caught.exception.op, caught.exception)
        self.assertIn(span.name, str(caught.exception))

    def test_free_and_close(self):
        span = self.alloc()
        other = self.client.open(span.name)
        mapping = other.map()
        mapping.view[:3] = b"abc"
        span.free()
        for ask in (span.stat, span.free, lambda: span.read(0, 1), other.stat, lambda: other.write(0, b"x")):
            with self.assertRaises(memspan.Freed):
                ask()
        self.eventually(lambda: isinstance(mapping.error, memspan.Freed), "the mapping does not learn it")
        self.assertEqual(bytes(mapping.view[:3]), b"\0\0\0")
        other.close()
        other.close()
        with self.assertRaises(memspan.Closed):
            other.read(0, 1)

    def test_a_span_without_a_name_goes_with_who_has_it(self):
        span = self.client.alloc(MIB)
        id = span.id
        mapping = span.map()
        span.close()
        mapping.view[0] = 7
        mapping.flush()
        view = mapping.view
        del mapping, span
        self.client.open(id).close()  # the view has it open
        view.release()
        del view
        self.eventually(lambda: id not in [s["id"] for s in self.client.list()], "the span stays")

    def test_forgotten_handles_are_given_up(self):
        sessions = lambda: {s["session"]: s["handles"] for s in self.client.stats()["session_list"]}[
            self.client._welcome["session"]]
        span = self.alloc()
        before = sessions()
        for _ in range(50):
            self.client.open(span.name)
        self.eventually(lambda: sessions() == before, "handles stay")

    def test_read_and_write(self):
        span = self.alloc(5 * MIB + 11)
        want = bytearray(span.size)
        for offset, size in ((0, 1), (MIB - 1, 2), (3, 4 * MIB), (5 * MIB, 11), (77, 0), (MIB, MIB)):
            data = pattern(size, offset)
            span.write(offset, data)
            want[offset:offset + size] = data
        self.assertEqual(span.read(), want)
        self.assertEqual(span.read(MIB - 3, 7), want[MIB - 3:MIB + 4])
        self.assertEqual(span.read(5 * MIB + 11), b"")
        buffer = bytearray(2 * MIB)
        span.readinto(99, buffer)
        self.assertEqual(buffer, want[99:99 + 2 * MIB])

    def test_whatever_has_bytes_can_be_written(self):
        span = self.alloc()
        matrix = memoryview(bytes(range(24))).cast("B", (4, 6))
        for data, want in (
            (bytearray(b"abc"), b"abc"),
            (memoryview(b"abcdef")[::2], b"ace"),
            (matrix, bytes(range(24))),
            (array.array("d", [1.5]), struct.pack("d", 1.5)),
        ):
            span.write(7, data)
            self.assertEqual(span.read(7, len(want)), want)
        if numpy is not None:
            for a in (numpy.arange(6, dtype=">i4").reshape(2, 3).T, numpy.zeros(3, dtype=[("a", "f2"), ("b", "i8")]),
                      numpy.array([1 + 2j]), numpy.zeros((0, 3))):
                span.write(7, a)
                self.assertEqual(span.read(7, a.nbytes), a.tobytes())
            a = numpy.zeros((3, 5), dtype=">u8")
            span.readinto(7, a)
            self.assertEqual(a.tobytes(), span.read(7, a.nbytes))

    def test_large_messages(self):
        span = self.alloc(97 * MIB)
        data = os.urandom(MIB + 1) * 96
        span.write(5, data)
        self.assertEqual(span.read(5, len(data)), data)

    def test_beyond_4_gib(self):
        size = (5 << 30) + 4097
        if "disk" not in self.client.tiers:
            self.skipTest("in RAM a span takes all of its size: the daemon needs a data directory")
        span = self.alloc(size, tier=memspan.DISK)
        for offset in ((1 << 32) - 3, (1 << 32) + MIB + 5, size - 6):
            span.write(offset, b"abcdef")
            self.assertEqual(span.read(offset, 6), b"abcdef")
            with span.map(offset - 5, 11, memspan.READ) as m:
                self.assertEqual(bytes(m.view), b"\0" * 5 + b"abcdef")
        with span.map((1 << 32) + 7, 5) as m:
            m.view[:] = b"12345"
        self.assertEqual(span.read((1 << 32) + 6, 7), b"\x00123450"[:-1] + b"\0")
        self.assertEqual(span.read((1 << 32) - 3, 3), b"abc")
        self.assertEqual(span.read(3, 6), bytes(6))  # nothing came round
        with self.assertRaises(memspan.OutOfRange):
            span.map(2**64 - 1, 2)
        self.assertLess(sum(tier["bytes"] for tier in span.stat()["tiers"].values()), 64 * MIB)


class Mappings(DaemonTest):
    def test_stores_are_everybodys(self):
        span = self.alloc()
        with memspan.connect() as other:
            there = other.open(span.name)
            m, r = span.map(), there.map(MIB + 7, 2 * MIB, memspan.READ)
            m.view[MIB + 7:MIB + 10] = b"abc"
            self.assertEqual(bytes(r.view[:3]), b"abc")  # before any flush
            self.assertEqual((r.offset, len(r), r.mode), (MIB + 7, 2 * MIB, "read"))
            commit = m.flush()
            self.assertEqual(commit.holders, ("host",))
            self.assertEqual(commit.version, there.stat()["version"])
            self.assertEqual(there.read(MIB + 7, 3), b"abc")
            there.write(MIB + 8, b"X")
            self.assertEqual(bytes(m.view[MIB + 7:MIB + 10]), b"aXc")
            again = m.flush(MIB, 4096)
            self.assertGreater(again.version, commit.version)
            self.assertEqual(m.flush().version, again.version)  # nothing was stored
            m.invalidate()
            m.unmap()
            r.unmap()
        self.assertEqual(span.stat()["unclean"], 0)

    def test_read_only(self):
        span = self.alloc()
        with span.map(mode=memspan.READ) as m:
            self.assertTrue(m.view.readonly)
            with self.assertRaises(TypeError):
                m.view[0] = 1
            with self.assertRaises(memspan.WrongMode):
                m.flush()
            if numpy is not None:
                self.assertFalse(m.array().flags.writeable)

    def test_ranges(self):
        span = self.alloc()
        m = span.map(4097, 100)
        for offset, length in ((-1, 1), (0, 101), (100, 1), (100, None), (0, 0)):
            for ask in (m.flush, m.invalidate):
                with self.assertRaises(memspan.OutOfRange):
                    ask(offset, length)
        m.view[99] = 9
        m.flush(99)
        m.unmap()
        self.assertEqual(span.read(4097 + 99, 1), b"\x09")

    def test_unmap(self):
        m = self.alloc().map()
        m.view[0] = 1
        view = m.view[3:]
        with self.assertRaises(BufferError):
            m.unmap()
        view[0] = 7  # all is as it was
        m.flush()
        del view
        m.unmap()
        for ask in (m.unmap, m.flush, m.invalidate, lambda: m.view):
            with self.assertRaises(memspan.NotMapped):
                ask()

    def test_arrays_outlive_the_block(self):
        span = self.alloc()
        with span.map() as m:
            a = m.array("uint8", (1000,))
            a[0] = 42
        self.assertEqual(span.read(0, 1), b"\x2a")  # it was flushed
        with self.assertRaises(memspan.NotMapped):
            m.view
        self.assertEqual(span.stat()["direct"], 1)
        a[1] = 43  # still the span's own memory
        self.assertEqual(span.read(1, 1), b"\x2b")
        del a
        self.eventually(lambda: span.stat()["direct"] == 0, "the mapping stays")
        self.assertEqual(span.stat()["unclean"], 0)

    def test_arrays_keep_everything(self):
        client = memspan.connect()
        view = client.alloc(MIB).map().view
        del client
        gc.collect()
        view[5] = 5
        id = [s["id"] for s in self.client.list() if s["direct"] == 1 and not s.get("name")]
        self.assertEqual(self.client.open(id[0]).read(5, 1), b"\x05")
        view.release()
        del view
        gc.collect()
        self.eventually(lambda: self.client.stats()["sessions"] == 1, "the connection stays")

    def test_forgotten_mappings_end(self):
        span = self.alloc()
        before = descriptors()
        for _ in range(50):
            span.map().view[0] = 1
        self.eventually(lambda: span.stat()["direct"] == 0, "mappings stay")
        self.assertEqual(descriptors(), before)

    def test_arrays(self):
        span = self.alloc()
        with span.map() as m:
            a = m.array("float32", (16, 4), 256)
            a[3, 1] = 1.5
            self.assertEqual(span.read(256 + 4 * 13, 4), struct.pack("f", 1.5))
            self.assertEqual(tuple(a.shape), (16, 4))
            self.assertEqual(m.array("int64").shape, ((4 * MIB + 123) // 8,))
            for shape, offset in (((16, MIB),  0), (1, 4 * MIB + 123), (-1, 0), (1, -1)):
                with self.assertRaises(memspan.OutOfRange):
                    m.array("float64", shape, offset)
            del a
            m.unmap()

    @unittest.skipIf(numpy is None, "without numpy")
    def test_arrays_of_structures(self):
        with self.alloc().map() as m:
            a = m.array([("x", "f8"), ("n", "u4")], 10)
            a["n"] = range(10)
            self.assertEqual(bytes(m.view[12 + 8:12 + 12]), b"\1\0\0\0")
            with self.assertRaises(Exception):
                m.array(object, 4)
            self.assertEqual(m.array("f4", (0, 3)).shape, (0, 3))

    @unittest.skipUnless(numpy is None, "with numpy")
    def test_types_without_numpy(self):
        with self.alloc().map() as m:
            with self.assertRaises(memspan.Invalid):
                m.array("complex128")

    @unittest.skipIf(numpy is None, "without numpy")
    def test_memory_is_not_pulled_from_under_numpy(self):
        m = self.alloc().map()
        for a in (numpy.frombuffer(m.view, "u1"), numpy.ndarray((10,), "u1", m.view), numpy.asarray(m.view)):
            with self.assertRaises(BufferError):
                m.unmap()
            a[3] = 3
        del a
        m.unmap()

    def test_a_gigabyte_is_not_copied(self):
        def anonymous():
            with open("/proc/self/status", encoding="ascii") as f:
                return next(int(line.split()[1]) << 10 for line in f if line.startswith("RssAnon"))
        span = self.alloc(1 << 30)
        before = anonymous(), span.stat()["written"], self.client._link._received
        with span.map() as m:
            a = m.array("uint8")
            for i in range(0, 1 << 30, 64 * MIB):
                a[i] = 1
            del a
            m.flush()
        self.assertLess(anonymous() - before[0], 16 * MIB)
        self.assertLess(self.client._link._received - before[2], 4096)
        self.assertEqual(span.read(960 * MIB, 1), b"\1")


class Threads(DaemonTest):
    def run_all(self, run, n):
        failed = []

        def body(i):
            try:
                run(i)
            except BaseException as e:
                failed.append(e)
        threads = [threading.Thread(target=body, args=(i,)) for i in range(n)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(120)
            self.assertFalse(t.is_alive(), "a thread hangs")
        if failed:
            raise failed[0]

    def test_one_client_many_threads(self):
        span = self.alloc(32 * 300_000)

        def run(i):
            mine = pattern(300_000, i)
            for _ in range(5):
                span.write(i * 300_000, mine)
                self.assertEqual(span.read(i * 300_000, 300_000), mine)
                with span.map(i * 300_000, 300_000) as m:
                    self.assertEqual(bytes(m.view), mine)
                    m.view[:4] = mine[:4]
                    m.flush()
                span.stat()
        self.run_all(run, 32)

    def test_many_clients(self):
        span = self.alloc(16 * 4096)

        def run(i):
            for n in range(10):
                with memspan.connect() as c, c.open(span.name) as s, s.map(i * 4096, 4096) as m:
                    m.view[n] = i
        self.run_all(run, 16)
        for i in range(16):
            self.assertEqual(span.read(i * 4096, 10), bytes([i]) * 10)

    def test_closed_under_them(self):
        for _ in range(5):
            client = memspan.connect()
            span = client.open(self.alloc(8 * MIB).name)
            started = threading.Barrier(9)

            def run(i):
                started.wait()
                with self.assertRaises((memspan.Closed, memspan.PeerLost)):
                    while True:
                        span.read(0, 4 * MIB) if i % 2 else span.write(0, bytes(MIB))
            threads = threading.Thread(target=lambda: self.run_all(run, 8))
            threads.start()
            started.wait()
            client.close()
            threads.join(60)
            self.assertFalse(threads.is_alive())


class Signals(DaemonTest):
    """Handlers that raise at any moment, as ^C does."""

    class Bang(Exception):
        pass

    def test_any_moment(self):
        span = self.alloc(8 * MIB)
        data = os.urandom(4 * MIB)
        link = self.client._link

        def bang(*_):
            raise self.Bang
        self.addCleanup(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, bang))
        self.addCleanup(setattr, sys, "unraisablehook", sys.unraisablehook)
        sys.unraisablehook = lambda _: None  # what is raised in a finalizer
        rand = random.Random(1)
        calls = [(span.stat, 0.0004), (lambda: span.write(0, data), 0.01), (lambda: span.read(0, 4 * MIB), 0.01),
                 (lambda: span.map().unmap(), 0.0008), (lambda: self.client.open(span.name).close(), 0.0004)]
        banged = 0
        for _ in range(600):
            call, most = rand.choice(calls)
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, rand.uniform(1e-6, most))
                    call()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except self.Bang:
                banged += 1
        self.assertGreater(banged, 50)
        self.assertIsNone(link.error)
        span.write(0, data)
        self.assertEqual(span.read(0, 4 * MIB), data)
        self.eventually(lambda: not link.pending, "requests stay")


class Processes(DaemonTest):
    def child(self, run):
        """Runs a function in a forked child, which must return True."""
        pid = os.fork()
        if not pid:
            code = 1
            try:
                code = 0 if run() else 2
            finally:
                os._exit(code)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0)

    def test_fork(self):
        span = self.alloc()
        mapping = span.map()

        def refused():
            try:
                span.read(0, 1)
            except memspan.Closed as e:
                return "after a fork" in str(e)
            return False
        self.child(refused)

        given_up = [self.client.open(span.name), span.map(), span.map().view]

        def shares():  # and leaves, by all that a leaving process does
            mapping.view[9] = 99
            given_up.clear()
            gc.collect()
            self.client.close()
            with memspan.connect() as own:
                return own.open(span.name).read(9, 1) == b"\x63"
        self.child(shares)
        self.assertEqual(mapping.view[9], 99)
        self.assertEqual(span.stat()["direct"], 3)
        given_up[0].stat()
        mapping.flush()
        self.assertEqual(span.read(9, 1), b"\x63")

    def test_a_writer_that_dies_is_known(self):
        span = self.alloc()

        def dies():
            m = memspan.connect().open(span.name).map()
            m.view[0] = 1
            os._exit(0)
        self.child(dies)
        self.eventually(lambda: span.stat()["unclean"] > 0, "nobody knows")
        self.assertEqual(span.read(0, 1), b"\1")

    def test_a_client_that_is_closed_leaves_nothing_unclean(self):
        span = self.alloc()
        client = memspan.connect()
        m = client.open(span.name).map()
        view = m.view
        view[0] = 1
        client.close()
        with self.assertRaises(memspan.Closed):
            m.flush()
        view[1] = 1  # valid memory still
        self.assertEqual(span.stat()["unclean"], 0)


class Formats(unittest.TestCase):
    """Tickets and manifests: surface/testdata."""

    directory = os.path.join(REPOSITORY, "surface", "testdata")

    def tickets(self):
        with open(os.path.join(self.directory, "tickets.json"), encoding="utf-8") as f:
            return json.load(f)

    def test_tickets(self):
        seen = 0
        for want in self.tickets():
            ticket = memspan.Ticket(" " + want["text"] + "\n")
            self.assertEqual(str(ticket), want["text"])
            self.assertEqual((ticket.id, list(ticket.addresses), ticket.machine), (want["id"], want["addresses"], want["machine"]))
            self.assertEqual(ticket.root and ticket.root.hex(), want.get("root"))
            self.assertEqual(ticket.encrypted, "key" in want)
            self.assertEqual(len(ticket.caveats), len(want.get("caveats", ())))
            for got, c in zip(ticket.caveats, want.get("caveats", ())):
                seen += 1
                if c["kind"] == "range":
                    self.assertEqual(got, ((c["offset"], c["length"]), None))
                else:
                    self.assertIsNone(got.range)
                    self.assertEqual(round(got.expires.timestamp() * 1000), c["expires_ms"])
        self.assertEqual(seen, 2)

    def test_a_ticket_shows_nothing_by_accident(self):
        ticket = memspan.Ticket(self.tickets()[0]["text"])
        self.assertEqual(repr([ticket]), f"[<ticket of surface {ticket.id}>]")
        self.assertEqual(f"{ticket}", self.tickets()[0]["text"])
        again = pickle.loads(pickle.dumps(ticket))
        self.assertEqual((again, again.id, again.addresses), (ticket, ticket.id, ticket.addresses))

    def test_what_is_no_ticket(self):
        good = self.tickets()[0]["text"]
        for bad in ("", "mst1", "mst2" + good[4:], good[:-1], good + "A", good[:40] + "\n" + good[40:], good + "=", "mst1" + "A" * 9000,
                    good[:50] + "+" + good[51:], "mst1\u00e4", good[:20] + good[21:]):
            with self.assertRaises(memspan.Invalid):
                memspan.Ticket(bad)
        for i in range(4, len(good)):  # a letter mistyped
            with self.assertRaises(memspan.Invalid):
                memspan.Ticket(good[:i] + ("A" if good[i] != "A" else "B") + good[i + 1:])

    def ticket(self, fields, version=1):
        data = bytes([version]) + bytes(16) + bytes(32) + fields
        data += struct.pack("<I", memspan._crc32c(data))
        return memspan.Ticket("mst1" + base64.urlsafe_b64encode(data).decode().rstrip("="))

    def test_fields(self):
        self.assertEqual(self.ticket(b"\xff\x02xx" + b"\x01\x01a").addresses, ("a",))  # one that can be left out
        for fields in (b"\x06\x00", b"\x01\x00", b"\x01\x02\xff\xfe", b"\x01\x02a\n", b"\x02\x01a", b"\x01", b"\x01\x05a",
                       b"\x01\x81\x00a", b"\x01" + b"\x80" * 20, b"\x03\x20" + bytes(32) + b"\x03\x20" + bytes(32),
                       b"\x02\x10" + bytes(16), b"\x05\x01\x09", b"\x05\x09\x02" + b"\xff" * 8, b"\x05\x11\x01" + b"\xff" * 16,
                       b"\x05\x09\x02" + bytes(7) + b"\x00" + b"\x05\x09\x02" + bytes(8)):
            with self.assertRaises(memspan.Invalid, msg=fields):
                self.ticket(fields)
        with self.assertRaises(memspan.Invalid):
            self.ticket(b"", version=2)

    def test_what_caveats_leave(self):
        def between(offset, length):
            return b"\x05\x11\x01" + struct.pack("<QQ", offset, length)
        for fields, want in ((b"", (0, 1000)), (between(10, 20), (10, 20)), (between(10, 20) + between(15, 1 << 62), (15, 15)),
                             (between(10, 20) + between(40, 5), (40, 0)), (between(990, 1 << 62), (990, 10)), (between(2000, 5), (1000, 0))):
            self.assertEqual(self.ticket(fields).allowed(1000), want)

    def test_manifests(self):
        for file in sorted(f for f in os.listdir(self.directory) if f.endswith(".bin")):
            with self.subTest(file):
                with open(os.path.join(self.directory, file), "rb") as f:
                    data = f.read()
                with open(os.path.join(self.directory, file[:-4] + ".json"), encoding="utf-8") as f:
                    want = json.load(f)
                m = memspan.Manifest.parse(data)
                for name in ("id", "name", "content_type", "size", "chunk", "count", "encrypted"):
                    self.assertEqual(getattr(m, name), want[name])
                self.assertEqual([d.hex() for d in m.digests], want["digests"])
                for name in ("created", "expires"):
                    t = getattr(m, name)
                    self.assertEqual(round(t.timestamp() * 1000) if t else 0, want[name + "_ms"])
                header = memspan.Manifest.parse(data[:want["header_size"]], header=True)
                self.assertEqual(header, m._replace(digests=()))
                for n in range(len(data)):  # cut short anywhere
                    with self.assertRaises(memspan.Invalid):
                        memspan.Manifest.parse(data[:n])
                with self.assertRaises(memspan.Invalid):
                    memspan.Manifest.parse(data + b"x")
                for at, value in ((8, 2), (12, 2), (39, 0x60), (40, 1), (48, 99), (63, 0x7F)):  # version, flags, size, chunk, count, created
                    bad = bytearray(data)
                    bad[at] = value
                    with self.assertRaises(memspan.Invalid, msg=at):
                        memspan.Manifest.parse(bad)


class Surfaces(DaemonTest):
    def expose(self, source, **options):
        ticket = self.client.expose(source, **options)

        def revoke():
            with contextlib.suppress(memspan.Error):
                self.client.revoke(ticket)
        self.addCleanup(revoke)
        return ticket

    def stat(self, ticket):
        return [s for s in self.client.surfaces() if s["id"] == ticket.id][0]

    def test_lists_all(self):
        tickets = [self.expose(b"x") for _ in range(300)]  # more than one answer has
        listed = [s["id"] for s in self.client.surfaces()]
        self.assertEqual(len(listed), len(set(listed)))
        self.assertLessEqual({t.id for t in tickets}, set(listed))

    def narrowed(self, ticket, offset, length):
        """A ticket for a range, made as docs/surface.md says."""
        data = base64.urlsafe_b64decode(ticket[4:] + "=" * (-len(ticket) % 4))[:-4]
        caveat = b"\x01" + struct.pack("<QQ", offset, length)
        secret = hmac.new(data[17:49], caveat, "sha256").digest()
        data = data[:17] + secret + data[49:] + b"\x05" + bytes([len(caveat)]) + caveat
        data += struct.pack("<I", memspan._crc32c(data))
        return "mst1" + base64.urlsafe_b64encode(data).decode().rstrip("=")

    def written(self, **options):
        """A surface that is written bit by bit: its handle and its ticket."""
        reply = self.client._link.ask("expose", {"source": "written", "size": -1, **options}, {}).reply
        return reply["handle"], memspan.Ticket(reply["ticket"])

    def write(self, handle, offset, data):
        self.client._write(int(handle), offset, memoryview(data))

    def test_bytes(self):
        content = os.urandom(5 * MIB + 321)
        ticket = self.expose(content, name="größe", content_type="text/plain", expires=3600)
        self.assertIsNotNone(ticket.root)
        with memspan.connect() as other, other.pull(ticket) as surface:
            self.assertEqual(surface.view, content)
            self.assertTrue(surface.view.readonly)
            m = surface.manifest
            self.assertEqual((m.name, m.content_type, m.size, m.encrypted, m.id), ("größe", "text/plain", len(content), False, ticket.id))
            self.assertAlmostEqual(m.expires.timestamp() - m.created.timestamp(), 3600, delta=5)
            self.assertEqual(m.count, -(-m.size // m.chunk))
            self.assertEqual(surface.root, ticket.root)
            self.assertTrue(surface.complete)
            self.assertEqual((len(surface), surface.ready, surface.offset, surface.wait()), (m.size, m.size, 0, m.size))
            stat = self.stat(ticket)
            self.assertEqual((stat["pullers"], stat["direct"], stat["given"]), (1, 1, 0))
            self.assertLess(other._link._received, 4096)  # no byte of it crossed the socket
        self.assertEqual(self.stat(ticket)["pullers"], 0)

    def test_whatever_has_bytes(self):
        for source, want in ((b"", b""), (bytearray(b"abc"), b"abc"), (memoryview(b"abcdef")[::2], b"ace"), (array.array("d", [2.5]), struct.pack("d", 2.5))):
            with self.client.pull(self.expose(source)) as surface:
                self.assertEqual(surface.view, want)

    @unittest.skipIf(numpy is None, "without numpy")
    def test_arrays(self):
        a = numpy.arange(3 * 5 * 7, dtype=">f8").reshape(3, 5, 7)
        b = self.client.pull(self.expose(a)).array(">f8", (3, 5, 7))
        gc.collect()
        self.assertTrue((a == b).all())
        self.assertFalse(b.flags.writeable)
        with self.assertRaises(ValueError):
            b.flags.writeable = True

    def test_what_is_exposed_stays(self):
        source = bytearray(b"x" * MIB)
        surface = self.client.pull(self.expose(source))
        source[:] = b"y" * MIB
        self.assertEqual(surface.view, b"x" * MIB)

    def test_files_and_spans(self):
        content = os.urandom(3 * MIB + 5)
        with tempfile.NamedTemporaryFile() as f:
            f.write(content)
            f.flush()
            before = descriptors()
            ticket = self.expose(f.name)
            self.expose(content)
            with self.assertRaises(memspan.Invalid):
                self.client.expose(content, name="x" * 300)
            self.assertEqual(descriptors(), before)
            with self.client.pull(ticket) as surface:
                self.assertEqual(surface.view, content)
                self.assertEqual(surface.manifest.name, os.path.basename(f.name))
            with self.client.pull(self.expose(pathlib.Path(f.name), name="n")) as surface:
                self.assertEqual(surface.manifest.name, "n")
        with self.assertRaises(FileNotFoundError):
            self.client.expose("/no/such/file")
        with tempfile.TemporaryDirectory() as d:
            os.mkfifo(d + "/pipe")
            with self.assertRaises(memspan.WrongState):  # and does not wait for a writer
                self.client.expose(d + "/pipe")
        span = self.alloc(len(content))
        span.write(0, content)
        with self.client.pull(self.expose(span)) as surface:
            span.write(0, b"changed")
            self.assertEqual(surface.view, content)

    def test_a_sparse_file_beyond_4_gib(self):
        with tempfile.TemporaryFile() as f:
            size = (5 << 30) + 3
            f.truncate(size)
            os.pwrite(f.fileno(), b"end", size - 3)
            os.pwrite(f.fileno(), b"middle", (1 << 32) - 3)
            ticket = self.expose(f"/proc/self/fd/{f.fileno()}", name="sparse")
        surface = self.client.pull(ticket)
        view = surface.view
        self.assertEqual(len(view), size)
        self.assertEqual(bytes(view[-5:]), b"\0\0end")
        self.assertEqual(bytes(view[(1 << 32) - 4:(1 << 32) + 4]), b"\0middle\0")
        self.assertEqual(bytes(view[:3]), bytes(3))
        self.assertLess(self.stat(ticket)["memory"], 64 * MIB)

    def test_memory_outlives_everything(self):
        content = os.urandom(MIB)
        client = memspan.connect()
        ticket = client.expose(content)
        view = client.pull(ticket).view
        self.client.revoke(ticket)
        client.close()
        gc.collect()
        self.assertEqual(view, content)

    def test_revoked(self):
        ticket = self.expose(b"x")
        self.client.revoke(ticket.id)
        with self.assertRaises(memspan.Revoked):
            self.client.pull(ticket)
        self.assertNotIn(ticket.id, [s["id"] for s in self.client.surfaces()])
        with self.assertRaises(memspan.NotFound):
            self.client.revoke("0" * 32)

    def test_expired(self):
        ticket = self.expose(b"x", expires=0.001)

        def expired():
            try:
                self.client.pull(ticket)
            except memspan.Expired:
                return True
            return False
        self.eventually(expired, "it does not expire")
        for expires in (0, -1, float("nan"), float("inf")):
            with self.assertRaises(memspan.Invalid):
                self.client.expose(b"x", expires=expires)

    def test_read_once(self):
        content = os.urandom(2 * MIB + 7)
        ticket = self.expose(content, read_once=True)
        surface = self.client.pull(ticket)
        with self.assertRaises(memspan.Taken):
            self.client.pull(ticket)
        self.assertEqual(surface.view, content)
        self.assertEqual(surface.view, content)  # kept here
        self.assertTrue(surface.view.readonly)

    def test_ranges(self):
        content = os.urandom(8 * MIB)
        ticket = self.expose(content)
        for offset, length, want in ((3 * MIB + 5, MIB, MIB), (7 * MIB + 1, 1 << 40, MIB - 1), (9 * MIB, 5, 0)):
            surface = self.client.pull(self.narrowed(ticket, offset, length))
            self.assertEqual(len(surface), want)
            self.assertEqual(surface.view, content[offset:offset + length])
            if want:
                self.assertEqual(surface.offset, offset)

    def test_wrong_tickets(self):
        ticket = self.expose(b"x")
        data = bytearray(base64.urlsafe_b64decode(ticket[4:] + "=" * (-len(ticket) % 4))[:-4])
        data[20] ^= 1  # of the secret
        wrong = "mst1" + base64.urlsafe_b64encode(data + struct.pack("<I", memspan._crc32c(data))).decode().rstrip("=")
        with self.assertRaises(memspan.Unauthenticated):
            self.client.pull(wrong)
        with self.assertRaises(memspan.Invalid):
            self.client.pull("mst1nonsense")

    def test_encrypted_without_a_key(self):
        handle, ticket = self.written(encrypted=True)
        with self.assertRaisesRegex(memspan.Invalid, "no key"):
            self.client.pull(ticket, stream=True)
        self.client._link.ask("close", {"handle": handle}, {})

    def test_a_stream(self):
        content = os.urandom(3 * MIB + 77)
        handle, ticket = self.written(chunk=MIB, name="stream")
        other = memspan.connect()
        self.addCleanup(other.close)
        surface = other.pull(ticket, stream=True)
        self.assertEqual((surface.ready, bytes(surface.view), surface.complete, surface.root), (0, b"", False, None))
        with self.assertRaises(memspan.Canceled):
            surface.wait(1, timeout=0.02)
        with self.assertRaises(memspan.Canceled):
            other.pull(ticket, timeout=0.02)
        reached = []
        waiter = threading.Thread(target=lambda: reached.append(surface.wait(2 * MIB)))
        waiter.start()
        self.eventually(lambda: self.stat(ticket)["waiting"] == 1, "nobody waits")
        self.assertEqual(bytes(surface.view), b"")  # waits for nobody
        self.write(handle, 0, content[:2 * MIB])
        waiter.join(30)
        self.assertGreaterEqual(reached[0], 2 * MIB)
        early = surface.view
        self.assertEqual(early, content[:len(early)])
        self.write(handle, 2 * MIB, content[2 * MIB:])
        self.client._link.ask("seal", {"handle": handle}, {})
        self.assertEqual(surface.wait(), len(content))
        self.assertEqual(surface.wait(1 << 60), len(content))
        self.assertEqual(surface.view, content)
        self.assertEqual(early, content[:len(early)])
        self.assertEqual(len(surface.root), 32)

    def test_a_stream_that_fails(self):
        handle, ticket = self.written()
        surface = self.client.pull(ticket, stream=True)
        failed = []

        def wait():
            try:
                surface.wait()
            except memspan.Error as e:
                failed.append(e)
        waiter = threading.Thread(target=wait)
        waiter.start()
        self.client._link.ask("close", {"handle": handle}, {})
        waiter.join(30)
        self.assertEqual(len(failed), 1, "it does not learn it")

    def test_forgotten_surfaces_are_given_up(self):
        ticket = self.expose(bytes(MIB))
        before = descriptors()
        for _ in range(50):
            self.client.pull(ticket)
        self.eventually(lambda: self.stat(ticket)["pullers"] == 0, "pullers stay")
        self.assertEqual(descriptors(), before)
        view = self.client.pull(ticket).view
        self.assertEqual(descriptors(), before + 1)  # mmap's own
        del view

    def test_a_gigabyte_is_mapped_and_not_copied(self):
        with tempfile.TemporaryFile() as f:
            f.truncate(1 << 30)
            ticket = self.expose(f"/proc/self/fd/{f.fileno()}")
        surface = self.client.pull(ticket)
        a = surface.array("float64")
        self.assertEqual(a[1 << 20], 0)
        self.assertLess(self.client._link._received, 8192)

    def test_many_pullers(self):
        content = os.urandom(MIB)
        ticket = self.expose(content)

        def run(i):
            for _ in range(5):
                with memspan.connect() as client, client.pull(ticket) as surface:
                    self.assertEqual(surface.view, content)
        Threads.run_all(self, run, 16)


class AnothersSurface(unittest.TestCase):
    """Pulls, through its own daemon, what another daemon exposes."""

    def test_pull(self):
        ticket = os.environ.get("MEMSPAN_TEST_TICKET")
        if not ticket:
            self.skipTest("MEMSPAN_TEST_TICKET is no ticket")
        with memspan.connect() as client, client.pull(ticket) as surface:
            self.assertEqual(hashlib.sha256(surface.view).hexdigest(), os.environ["MEMSPAN_TEST_SHA256"])
            self.assertTrue([s for s in client.surfaces() if s["id"] == surface.manifest.id][0]["replica"])


class Encrypted(unittest.TestCase):
    """Pulls what is encrypted: the daemon at $MEMSPAN_SOCKET decrypts it."""

    def setUp(self):
        if "MEMSPAN_TEST_KEYED" not in os.environ:
            self.skipTest("MEMSPAN_TEST_KEYED is no ticket with a key")
        self.ticket = memspan.Ticket(os.environ["MEMSPAN_TEST_KEYED"])
        self.client = memspan.connect()
        self.addCleanup(self.client.close)

    def changed(self, change):
        """The ticket with another body: what is behind its secret."""
        data = base64.urlsafe_b64decode(self.ticket[4:] + "=" * (-len(self.ticket) % 4))[:-4]
        data = data[:49] + change(data[49:])
        data += struct.pack("<I", memspan._crc32c(data))
        return memspan.Ticket("mst1" + base64.urlsafe_b64encode(data).decode().rstrip("="))

    @staticmethod
    def key(body):
        """Where the key stands."""
        return body.index(b"\x04\x20")

    def test_pull(self):
        before = descriptors()
        with self.client.pull(self.ticket) as surface:
            self.assertEqual(hashlib.sha256(surface.view).hexdigest(), os.environ["MEMSPAN_TEST_SHA256"])
            self.assertTrue(surface.view.readonly)
            self.assertTrue(surface.manifest.encrypted)
            self.assertTrue(surface.complete)
            self.assertLessEqual(descriptors(), before)

    def test_stream(self):
        with self.client.pull(self.ticket, stream=True) as surface:
            size = surface.manifest.size
            self.assertEqual(surface.wait(timeout=30), size)
            self.assertEqual(hashlib.sha256(surface.array()).hexdigest(), os.environ["MEMSPAN_TEST_SHA256"])

    def test_another_key(self):
        def other(body):
            at = self.key(body) + 2
            return body[:at] + bytes([body[at] ^ 1]) + body[at + 1:]
        with self.assertRaisesRegex(memspan.Corrupt, "key"):
            self.client.pull(self.changed(other))
        self.test_pull()  # nothing is left of it

    def test_no_key(self):
        with self.assertRaisesRegex(memspan.Invalid, "no key"):
            self.client.pull(self.changed(lambda body: body[:self.key(body)] + body[self.key(body) + 34:]))

    def test_keys_do_not_leave_the_machine(self):
        for address in ("tls://127.0.0.1:1#" + "0" * 64, "tcp://127.0.0.1:1"):
            with self.assertRaises(memspan.Unsupported):
                memspan.connect(address)


class Killed(unittest.TestCase):
    """Kills the daemon, whose process $MEMSPAN_TEST_KILL is."""

    def test_killed(self):
        if "MEMSPAN_TEST_KILL" not in os.environ:
            self.skipTest("MEMSPAN_TEST_KILL names no process")
        client = memspan.connect()
        span = client.alloc(64 * MIB, "doomed")
        m = span.map()
        m.view[:3] = b"abc"
        outcomes = []

        def busy():
            try:
                while True:
                    span.read(0, 8 * MIB)
            except memspan.Error as e:
                outcomes.append(e)
        threads = [threading.Thread(target=busy) for _ in range(4)]
        for t in threads:
            t.start()
        os.kill(int(os.environ["MEMSPAN_TEST_KILL"]), signal.SIGKILL)
        for t in threads:
            t.join(30)
            self.assertFalse(t.is_alive(), "a thread hangs")
        self.assertEqual({type(e) for e in outcomes}, {memspan.PeerLost})
        self.assertEqual(len(outcomes), 4)
        self.assertIsInstance(client.error, memspan.PeerLost)
        self.assertIsInstance(m.error, memspan.PeerLost)
        for ask in (client.list, span.stat, m.flush, lambda: client.alloc(1), lambda: span.write(0, b"x"), span.map):
            with self.assertRaises(memspan.PeerLost):
                ask()
        self.assertEqual(bytes(m.view[:3]), b"abc")  # memory stays memory
        m.view[3:6] = b"def"
        with self.assertRaises(memspan.PeerLost):
            m.unmap()
        client.close()
        with self.assertRaises(memspan.PeerLost):
            memspan.connect()


class WithGo(unittest.TestCase):
    """One half of a test whose other half is in Go: test/e2e, TestPythonAndGo."""

    def test_with_go(self):
        name = os.environ.get("MEMSPAN_TEST_SPAN")
        if not name:
            self.skipTest("MEMSPAN_TEST_SPAN names no span")
        with memspan.connect() as client:
            span = client.open(name)
            with span.map(MIB - 100, 200) as m:
                self.assertEqual(bytes(m.view), bytes(i & 0xFF for i in range(200)))  # by Go's mapping
                m.view[:100] = b"p" * 100
            self.assertEqual(span.read(2 * MIB, 5), b"go at")  # by Go's WriteAt
            span.write(2 * MIB, b"python")


if __name__ == "__main__":
    unittest.main()
