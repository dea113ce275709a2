// SPDX-License-Identifier: Apache-2.0

package sharedbuf_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/memspan/memspan/sharedbuf"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Operations by a host are tested with package host.

func TestFrames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		texts := rapid.SliceOf(rapid.StringN(0, 70, 290)).Draw(t, "texts")
		var stream []byte
		var bodies [][]byte
		for _, text := range texts {
			body, err := json.Marshal(text)
			if err != nil {
				t.Fatal(err)
			}
			before := len(stream)
			stream, err = sharedbuf.AppendFrame(stream, json.RawMessage(body), sharedbuf.MaxRequest)
			if err != nil {
				t.Fatal(err)
			}
			bodies = append(bodies, stream[before+4:])
			var back string
			if err := json.Unmarshal(bodies[len(bodies)-1], &back); err != nil || back != text {
				t.Fatalf("%q was sent as %q, %v", text, back, err)
			}
		}
		cut := rapid.IntRange(0, len(stream)).Draw(t, "cut")
		r := bufio.NewReaderSize(&interrupted{stream: stream[:cut], piece: rapid.IntRange(1, 100).Draw(t, "piece")}, 4+sharedbuf.MaxRequest)
		whole := 0
		for _, body := range bodies {
			whole += 4 + len(body)
			got, err := sharedbuf.ReadFrame(r, sharedbuf.MaxRequest)
			for errors.Is(err, os.ErrDeadlineExceeded) { // nothing is lost by that
				got, err = sharedbuf.ReadFrame(r, sharedbuf.MaxRequest)
			}
			if whole > cut {
				want := io.ErrUnexpectedEOF
				if whole-4-len(body) == cut {
					want = io.EOF
				}
				if err != want {
					t.Fatalf("cut at %d: %v, want %v", cut, err, want)
				}
				return
			}
			if err != nil || !bytes.Equal(got, body) {
				t.Fatalf("%q, %v, want %q", got, err, body)
			}
		}
	})
	if _, err := sharedbuf.AppendFrame(nil, strings.Repeat("x", 9), 10); !errors.Is(err, sharedbuf.ErrLimit) {
		t.Errorf("too long: %v", err)
	}
	if _, err := sharedbuf.AppendFrame(nil, func() {}, 10); !errors.Is(err, sharedbuf.ErrInvalid) {
		t.Errorf("no JSON: %v", err)
	}
}

// Interrupted gives a stream in pieces, and fails between two of them.
type interrupted struct {
	stream []byte
	piece  int
	failed bool
}

func (i *interrupted) Read(p []byte) (int, error) {
	if i.failed = !i.failed; i.failed {
		return 0, os.ErrDeadlineExceeded
	}
	if len(i.stream) == 0 {
		return 0, io.EOF
	}
	n := copy(p, i.stream[:min(i.piece, len(i.stream))])
	i.stream = i.stream[n:]
	return n, nil
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}rest"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Add([]byte("\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := bufio.NewReader(bytes.NewReader(stream))
		body, err := sharedbuf.ReadFrame(r, 100)
		if err != nil {
			return
		}
		again := append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
		if rest, err := io.ReadAll(r); err != nil || len(body) > 100 || !bytes.Equal(append(again, rest...), stream) {
			t.Errorf("%q was read as %q, and %q is left, %v", stream, body, rest, err)
		}
	})
}

// What is accepted as a request can be asked for its parts, and means the same
// after it was encoded once more.
func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(`{"api":"shared_buffer","operation":"process","file_path":"/mnt/c/temp/winapi_shared_buffer_1_1234","buffer_size":67108864,"buffer_id":1}`))
	f.Add([]byte(`{"api":"buffer_test","request_id":1,"version":1,"operation":3,"test_pattern":-559038737,"payload_size":8,"socket_transfer":true}`))
	f.Add([]byte(`{"api":"echo","input":"\/\u0000\ud800"}`))
	f.Add([]byte(`{"api":"performance","test_type":2,"iterations":1e3,"target_bytes":1}`))
	f.Add([]byte(`{"api":"x","buffer_size":-1}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := sharedbuf.ParseRequest(body)
		if err != nil {
			if !errors.Is(err, sharedbuf.ErrInvalid) && !errors.Is(err, sharedbuf.ErrUnsupported) {
				t.Errorf("error without a code: %v", err)
			}
			return
		}
		chain, err := r.Chain()
		if err == nil && len(chain) != 1+len(r.Then) {
			t.Errorf("chain %v", chain)
		}
		r.OperationNumber()
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		back, err := sharedbuf.ParseRequest(again)
		if err != nil || back.API != r.API || back.ID != r.ID || back.Size != r.Size || back.BufferID != r.BufferID || back.Path != r.Path {
			t.Errorf("%s became %s: %v", body, again, err)
		}
	})
}

func FuzzParseReply(f *testing.F) {
	f.Add([]byte(`{"request_id":123,"status":"success","result":null}`))
	f.Add([]byte(`{"request_id":1,"status":"error","error":"x: not-found: y","code":"not-found"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := sharedbuf.ParseReply(body)
		if err != nil {
			return
		}
		if e := r.Failure(); e != nil && e.Error() == "" {
			t.Error("a failure without a word")
		}
	})
}

// A reply always fits, and is JSON, whatever is to be said.
func TestRepliesFit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := string(rapid.SliceOfN(rapid.Byte(), 0, 50).Draw(t, "text"))
		text = strings.Repeat(text, rapid.IntRange(0, 3000).Draw(t, "times"))
		var failed error
		if rapid.Bool().Draw(t, "fails") {
			failed = &sharedbuf.Error{Code: sharedbuf.ErrStale, Message: text}
		}
		frame := sharedbuf.AppendReply(nil, 7, text, failed)
		body, err := sharedbuf.ReadFrame(bufio.NewReaderSize(bytes.NewReader(frame), len(frame)), sharedbuf.MaxResponse)
		if err != nil {
			t.Fatal(err)
		}
		reply, err := sharedbuf.ParseReply(body)
		if err != nil || reply.ID != 7 {
			t.Fatalf("%+v, %v", reply, err)
		}
		switch e := reply.Failure(); {
		case failed != nil:
			if !errors.Is(e, sharedbuf.ErrStale) {
				t.Errorf("failed with %v", e)
			}
		case e != nil && !errors.Is(e, sharedbuf.ErrLimit):
			t.Errorf("refused: %v", e)
		}
	})
}

func TestTranslation(t *testing.T) {
	wsl := sharedbuf.WSL()
	mixed := sharedbuf.Translation{{Guest: "/mnt/c", Host: `C:\`}, {Guest: "/mnt/c/temp", Host: `D:\fast`}, {Guest: "/", Host: "/srv/guests"}}
	for _, test := range []struct {
		rules       sharedbuf.Translation
		guest, host string // host empty: refused
	}{
		{wsl, "/mnt/c/temp/winapi_shared_buffer_1_1234", `C:\temp\winapi_shared_buffer_1_1234`},
		{wsl, "/mnt/c/Users/user/data.bin", `C:\Users\user\data.bin`},
		{wsl, "/mnt/z/a b/ü", `Z:\a b\ü`},
		{wsl, "/mnt/c", `C:\`},
		{wsl, "/mnt/config/x", ""},
		{wsl, "/mnt/cc/x", ""},
		{wsl, "/mnt/C/x", ""},
		{wsl, "/mnt/c/../d", ""},
		{wsl, "/mnt/c/./d", ""},
		{wsl, "/mnt/c//d", ""},
		{wsl, "//mnt/c/d", ""},
		{wsl, "mnt/c/d", ""},
		{wsl, "", ""},
		{wsl, `/mnt/c/a\b`, ""},
		{wsl, "/mnt/c/a:stream", ""},
		{wsl, "/mnt/c/a\x00", ""},
		{wsl, "/mnt/c/nul", ""},
		{wsl, "/mnt/c/temp/Com1.txt", ""},
		{wsl, "/mnt/c/con /x", ""},
		{wsl, "/mnt/c/end.", ""},
		{wsl, "/mnt/c/what?", ""},
		{mixed, "/mnt/c/temp/x", `D:\fast\x`},
		{mixed, "/mnt/c/tempo/x", `C:\tempo\x`},
		{mixed, "/var/x", "/srv/guests/var/x"},
		{nil, "/var/x", ""},
	} {
		got, err := test.rules.ToHost(test.guest)
		if got != test.host || (err == nil) != (test.host != "") || err != nil && !errors.Is(err, sharedbuf.ErrOutside) {
			t.Errorf("%q became %q, %v, want %q", test.guest, got, err, test.host)
		}
	}
	for host, guest := range map[string]string{
		`C:\temp\x`: "/mnt/c/temp/x", `c:/temp/x`: "/mnt/c/temp/x", `\\server\share\x`: "", `C:temp`: "", `\\?\C:\x`: "", `C:\a\..\b`: "", `C:\`: "/mnt/c",
	} {
		if got, err := wsl.ToGuest(host); got != guest || (err == nil) != (guest != "") {
			t.Errorf("%q became %q, %v, want %q", host, got, err, guest)
		}
	}
	for _, text := range []string{"", "/mnt/c", "=", "/mnt/c=", "mnt=C:\\", "/mnt/c=C:"} {
		if rule, err := sharedbuf.ParseRule(text); err == nil {
			t.Errorf("%q is a rule: %v", text, rule)
		}
	}
}

// What goes over comes back the same, and nothing gets out of its directory.
func TestTranslationProperties(t *testing.T) {
	rules := sharedbuf.Translation{{Guest: "/mnt/c", Host: `C:\`}, {Guest: "/data", Host: `D:\guests\data`}, {Guest: "/tmp", Host: "/srv/tmp"}}
	rapid.Check(t, func(t *rapid.T) {
		path := rapid.SampledFrom([]string{"/mnt/c", "/data", "/tmp", "/mnt", "", "//", `C:\`}).Draw(t, "prefix")
		for _, part := range rapid.SliceOfN(rapid.SampledFrom([]string{"a", "..", ".", "", "b.c", "nul", `x\y`, "é", "a:b", "C:"}), 0, 4).Draw(t, "parts") {
			path += "/" + part
		}
		host, err := rules.ToHost(path)
		if err != nil {
			return
		}
		inside := false
		for _, root := range []string{`C:\`, `D:\guests\data`, "/srv/tmp"} {
			if rel, err := sharedbuf.Below(root, host); err == nil {
				inside = true
				for part := range strings.SplitSeq(rel, "/") {
					if part == ".." || part == "" {
						t.Errorf("%q: below %s it is %q", path, root, rel)
					}
				}
			}
		}
		if !inside {
			t.Errorf("%q became %q, outside of all", path, host)
		}
		back, err := rules.ToGuest(host)
		if err != nil || back != strings.TrimRight(path, "/") {
			t.Errorf("%q became %q became %q, %v", path, host, back, err)
		}
	})
}

// stub answers requests by f, which may return nil to answer nothing, until the
// test ends.
func stub(t *testing.T, f func(r *sharedbuf.Request) []byte) (address string) {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			in := bufio.NewReaderSize(nc, 4+sharedbuf.MaxRequest)
			for {
				body, err := sharedbuf.ReadFrame(in, sharedbuf.MaxRequest)
				if err != nil {
					break
				}
				r, err := sharedbuf.ParseRequest(body)
				if err != nil {
					t.Errorf("%s: %v", body, err)
					break
				}
				if answer := f(r); answer != nil {
					if _, err := nc.Write(answer); err != nil {
						break
					}
				}
			}
			nc.Close()
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
	})
	return ln.Addr().String()
}

func client(t *testing.T, address, dir string) *sharedbuf.Client {
	t.Helper()
	c, err := sharedbuf.Dial(t.Context(), address, sharedbuf.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// Hosts that break the protocol cost an error, and the next request dials anew.
func TestHostsThatAreWrong(t *testing.T) {
	raw := func(body string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	}
	for name, answer := range map[string]func(r *sharedbuf.Request) []byte{
		"no result":  func(r *sharedbuf.Request) []byte { return sharedbuf.AppendReply(nil, r.ID, nil, nil) },
		"another id": func(r *sharedbuf.Request) []byte { return sharedbuf.AppendReply(nil, r.ID+5, 1, nil) },
		"another buffer": func(r *sharedbuf.Request) []byte {
			return sharedbuf.AppendReply(nil, r.ID, sharedbuf.Result{BufferID: 1}, nil)
		},
		"a number":        func(r *sharedbuf.Request) []byte { return sharedbuf.AppendReply(nil, r.ID, 5, nil) },
		"no JSON":         func(*sharedbuf.Request) []byte { return raw("{") },
		"another status":  func(*sharedbuf.Request) []byte { return raw(`{"request_id":1,"status":"maybe"}`) },
		"a huge answer":   func(*sharedbuf.Request) []byte { return []byte("\xff\xff\xff\xff") },
		"an empty answer": func(*sharedbuf.Request) []byte { return []byte("\x00\x00\x00\x00") },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := client(t, stub(t, answer), dir)
			b, err := c.Alloc(t.Context(), 10)
			if err != nil {
				t.Fatal(err)
			}
			sharedbuf.NextID(c, 1<<31)
			for range 2 {
				if _, err := b.Process(t.Context(), sharedbuf.Process()); !errors.Is(err, sharedbuf.ErrPeerLost) {
					t.Errorf("Process: %v", err)
				}
			}
			b.Bytes()[9] = 1 // it is still there
		})
	}
}

// An original host's refusals have no code.
func TestRefusalWithoutCode(t *testing.T) {
	c := client(t, stub(t, func(r *sharedbuf.Request) []byte {
		body := fmt.Sprintf(`{"request_id":%d,"status":"error","error":"no"}`, r.ID)
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	}), "")
	if _, err := c.Echo(t.Context(), "x"); !errors.Is(err, sharedbuf.ErrFailed) || !strings.HasSuffix(err.Error(), ": failed: no") {
		t.Errorf("refused: %v", err)
	}
}

// A host that lets nobody in says so before it has read a request.
func TestRefusedGuest(t *testing.T) {
	c := client(t, stub(t, func(*sharedbuf.Request) []byte {
		return sharedbuf.AppendReply(nil, 0, nil, &sharedbuf.Error{Code: sharedbuf.ErrDenied, Message: "you are not trusted"})
	}), "")
	if _, err := c.Echo(t.Context(), "x"); !errors.Is(err, sharedbuf.ErrDenied) || !strings.Contains(err.Error(), "you are not trusted") {
		t.Errorf("a guest that is not let in gets: %v", err)
	}
}

// A host that never answers is waited for as long as the context says.
func TestStalledHost(t *testing.T) {
	asked := make(chan struct{}, 10)
	c := client(t, stub(t, func(*sharedbuf.Request) []byte {
		asked <- struct{}{}
		return nil
	}), "")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	if _, err := c.Echo(ctx, "x"); !errors.Is(err, sharedbuf.ErrCanceled) || !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// A buffer that cannot be mapped leaves no file.
func TestMappingFails(t *testing.T) {
	dir := t.TempDir()
	c := client(t, stub(t, func(r *sharedbuf.Request) []byte { return sharedbuf.AppendReply(nil, r.ID, "", nil) }), dir)
	if _, err := c.Echo(t.Context(), ""); err != nil { // the stub has its descriptor now
		t.Fatal(err)
	}
	injected := errors.New("injected")
	sharedbuf.FailMapping(c, injected)
	before := openFiles(t)
	if _, err := c.Alloc(t.Context(), 5000); !errors.Is(err, injected) {
		t.Errorf("Alloc: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// A buffer that is not wanted any more while its memory is taken leaves no file.
func TestAllocGivenUp(t *testing.T) {
	dir := t.TempDir()
	c := client(t, stub(t, func(*sharedbuf.Request) []byte { return nil }), dir)
	ctx, cancel := context.WithCancel(t.Context())
	sharedbuf.BeforeMapping(c, cancel)
	if _, err := c.Alloc(ctx, 5000); !errors.Is(err, sharedbuf.ErrCanceled) || !errors.Is(err, context.Canceled) {
		t.Errorf("Alloc: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// Names that are taken, by whatever, are passed over.
func TestTakenNames(t *testing.T) {
	dir := t.TempDir()
	c := client(t, stub(t, func(*sharedbuf.Request) []byte { return nil }), dir)
	for i, suffix := range []string{"", ".lease", ""} {
		name := fmt.Sprintf("%s%d_%d%s", sharedbuf.NamePrefix, uint32(1<<32-2+i), os.Getpid(), suffix)
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sharedbuf.NextID(c, 1<<32-2) // and round the end
	b, err := c.Alloc(t.Context(), 1)
	if err != nil || b.ID() != 1 {
		t.Fatalf("id %d, %v", b.ID(), err)
	}
	info, err := b.File().Stat()
	if err != nil || info.Mode() != 0o600 || info.Size() != 1 {
		t.Errorf("file %v, %v", info, err)
	}
	if want := filepath.Join(dir, fmt.Sprintf("winapi_shared_buffer_1_%d", os.Getpid())); b.Path() != want {
		t.Errorf("path %s, want %s", b.Path(), want)
	}
}

func TestDialFails(t *testing.T) {
	for address, want := range map[string]error{
		"unix:" + filepath.Join(t.TempDir(), "none"): sharedbuf.ErrPeerLost,
		"unix:/run/" + strings.Repeat("x", 200):      sharedbuf.ErrInvalid,
		"127.0.0.1:1":                                sharedbuf.ErrPeerLost,
		"udp://host:1":                               sharedbuf.ErrInvalid,
		"tls://host":                                 sharedbuf.ErrInvalid,
		"tls://127.0.0.1:1":                          sharedbuf.ErrPeerLost,
	} {
		if _, err := sharedbuf.Dial(t.Context(), address, sharedbuf.Options{Dir: t.TempDir()}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", address, err, want)
		}
	}
	if _, err := sharedbuf.Dial(t.Context(), "127.0.0.1:1", sharedbuf.Options{Dir: filepath.Join(t.TempDir(), "none")}); !errors.Is(err, sharedbuf.ErrNotFound) {
		t.Errorf("no directory: %v", err)
	}
}
