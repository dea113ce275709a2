// SPDX-License-Identifier: Apache-2.0

package dial_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
	"github.com/memspan/memspan/wire/dial"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// What is dialed, and by whom it is refused, is tested where servers are: with
// package memspan, whose Dial is this one's.

// answers starts a server that greets, reads a request and answers it by f.
func answers(t *testing.T, f func(c *wire.Conn, h wire.Header, req control.Request)) (address string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		c := wire.NewConn(nc, wire.Config{})
		defer c.Close()
		read := func(v any) wire.Header {
			h, err := c.ReadHeader()
			if err != nil {
				return h
			}
			data := make([]byte, h.Raw)
			if c.ReadData(data) == nil {
				json.Unmarshal(data, v)
			}
			return h
		}
		var hello control.Hello
		h := read(&hello)
		reply(c, h, 0, control.Welcome{Protocol: wire.Version, BlockSize: 1 << 20, Direct: true})
		var req control.Request
		h = read(&req)
		f(c, h, req)
		read(&req) // until the client leaves
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
	})
	return "unix:" + path
}

func reply(c *wire.Conn, h wire.Header, more wire.Flags, v any) {
	data, _ := json.Marshal(v)
	c.WriteFrame(wire.Header{Kind: h.Kind, ID: h.ID, Flags: wire.FlagReply | more}, nil, data)
}

func ask(t *testing.T, ctx context.Context, address string) (started control.VulkanStarted, err error) {
	t.Helper()
	c, err := dial.Dial(t.Context(), address, dial.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Wire.Close() })
	if c.Files == nil || c.Socket == nil || !c.Welcome.Direct {
		t.Errorf("connection %+v", c)
	}
	err = c.Ask(ctx, control.OpVulkan, control.Vulkan{Application: "app"}, &started)
	if err != nil {
		if _, late := c.Wire.ReadHeader(); late == nil {
			t.Error("the connection goes on after an error")
		}
	}
	return started, err
}

func TestAsk(t *testing.T) {
	address := answers(t, func(c *wire.Conn, h wire.Header, req control.Request) {
		var a control.Vulkan
		if json.Unmarshal(req.Args, &a) != nil || req.Op != control.OpVulkan || a.Application != "app" {
			t.Errorf("asked %s %s", req.Op, req.Args)
		}
		c.WriteFrame(wire.Header{Kind: wire.KindEvent}, nil, []byte(`{"event":"news"}`))
		reply(c, h, 0, control.VulkanStarted{Worker: 3})
	})
	if started, err := ask(t, t.Context(), address); err != nil || started.Worker != 3 {
		t.Errorf("Ask = %+v, %v", started, err)
	}
}

func TestAskFails(t *testing.T) {
	for name, test := range map[string]struct {
		answer func(c *wire.Conn, h wire.Header, req control.Request)
		want   error
	}{
		"refused": {func(c *wire.Conn, h wire.Header, _ control.Request) {
			c.WriteFrame(wire.Header{Kind: h.Kind, ID: h.ID, Flags: wire.FlagReply | wire.FlagError}, nil,
				(&wire.Error{Code: wire.Unsupported, Message: "no GPU"}).Append(nil))
		}, wire.Unsupported},
		"closing": {func(c *wire.Conn, _ wire.Header, _ control.Request) {
			c.WriteFrame(wire.Header{Kind: wire.KindEvent}, nil, []byte(`{"event":"closing"}`))
		}, wire.Closed},
		"hung up":   {func(c *wire.Conn, _ wire.Header, _ control.Request) { c.Close() }, wire.PeerLost},
		"not JSON":  {func(c *wire.Conn, h wire.Header, _ control.Request) { reply(c, h, 0, 5) }, wire.PeerLost},
		"other id":  {func(c *wire.Conn, h wire.Header, _ control.Request) { h.ID++; reply(c, h, 0, 5) }, wire.PeerLost},
		"bad error": {func(c *wire.Conn, h wire.Header, _ control.Request) { reply(c, h, wire.FlagError, 5) }, wire.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ask(t, t.Context(), answers(t, test.answer))
			var e *wire.Error
			if !errors.Is(err, test.want) || !errors.As(err, &e) || e.Op != "vulkan" {
				t.Errorf("Ask = %v, want %v", err, test.want)
			}
		})
	}
	asked := make(chan struct{})
	address := answers(t, func(*wire.Conn, wire.Header, control.Request) { close(asked) })
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	if _, err := ask(t, ctx, address); !errors.Is(err, context.Canceled) || !errors.Is(err, wire.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

func TestComplete(t *testing.T) {
	for _, test := range []struct {
		server string
		token  bool
		want   string
	}{
		{"", true, ""},
		{"unix:x", true, "unix:x"},
		{"/run/s", false, "/run/s"},
		{"tcp://h:1", true, "tcp://h:1"},
		{"tls://h:1#00", false, "tls://h:1#00"},
		{"gpu:7070", true, "tls://gpu:7070"},
		{"gpu:7070#ff", true, "tls://gpu:7070#ff"},
		{"127.0.0.1:7070", true, "tcp://127.0.0.1:7070"},
		{"[::1]:7070", true, "tcp://[::1]:7070"},
		{"localhost:7070", true, "tcp://localhost:7070"},
		{"localhost:7070", false, "tls://localhost:7070"},
		{"localhost:7070#ff", true, "tls://localhost:7070#ff"},
		{"192.0.2.1:7070", true, "tls://192.0.2.1:7070"},
		{"nonsense", true, "nonsense"},
	} {
		if got := dial.Complete(test.server, test.token); got != test.want {
			t.Errorf("Complete(%q, %v) = %q, want %q", test.server, test.token, got, test.want)
		}
	}
}

func TestEnvironment(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(" from the file \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	set := func(t *testing.T, pairs ...string) {
		for _, name := range []string{dial.ServerVariable, "MEMSPAN_ADDRESS", dial.TokenVariable, dial.TokenFileVariable,
			dial.CAVariable, dial.CertVariable, dial.KeyVariable} {
			t.Setenv(name, "")
		}
		for i := 0; i < len(pairs); i += 2 {
			t.Setenv(pairs[i], pairs[i+1])
		}
	}
	for _, test := range []struct {
		pairs          []string
		address, token string
	}{
		{nil, "", ""},
		{[]string{"MEMSPAN_ADDRESS", "tls://a:1"}, "tls://a:1", ""},
		{[]string{"MEMSPAN_ADDRESS", "tls://a:1", dial.ServerVariable, "b:2"}, "tls://b:2", ""},
		{[]string{dial.ServerVariable, "127.0.0.1:2", dial.TokenVariable, "t"}, "tcp://127.0.0.1:2", "t"},
		{[]string{dial.TokenFileVariable, token}, "", "from the file"},
	} {
		set(t, test.pairs...)
		address, o, err := dial.Environment()
		if err != nil || address != test.address || o.Token != test.token || o.TLS != nil {
			t.Errorf("with %v: %q, %+v, %v", test.pairs, address, o, err)
		}
	}
	for _, pairs := range [][]string{
		{dial.TokenFileVariable, token + "x"},
		{dial.TokenFileVariable, os.DevNull},
		{dial.CAVariable, token},
		{dial.CAVariable, token + "x"},
		{dial.CertVariable, token},
		{dial.CertVariable, token, dial.KeyVariable, token},
	} {
		set(t, pairs...)
		if _, _, err := dial.Environment(); err == nil {
			t.Errorf("with %v: no error", pairs)
		}
	}
}
