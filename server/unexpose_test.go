// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"testing"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/span"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// What is exposed for somebody who is not there any more to be told of it goes.
func TestExposedForNobody(t *testing.T) {
	srv, err := New(t.Context(), Config{HostBudget: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Shutdown(context.Background())
	expose := func(ctx context.Context, source control.ExposeSource, gone bool) error {
		near, far := net.Pipe()
		defer near.Close()
		if gone {
			far.Close()
		} else {
			go io.Copy(io.Discard, far)
			defer far.Close()
		}
		s := newSession(srv, near)
		s.conn = wire.NewConn(near, wire.Config{})
		defer s.cleanUp()
		sp, err := srv.store.Alloc(t.Context(), span.Info{Size: 4096, Tier: coherency.Host, Home: coherency.Host})
		if err != nil {
			t.Fatal(err)
		}
		opened, err := s.addHandle(sp)
		if err != nil {
			t.Fatal(err)
		}
		args, _ := json.Marshal(control.Expose{Source: source, Handle: opened.Handle, Size: 4096})
		return s.answerControl(ctx, wire.Header{Kind: wire.KindControl, ID: 1}, control.Request{Op: control.OpExpose, Args: args}, nil)
	}
	listed := func() int { return len(srv.surfaces.List()) }
	if err := expose(t.Context(), control.ExposeSpan, false); err != nil || listed() != 1 {
		t.Fatalf("told: %v, %d surfaces", err, listed())
	}
	if err := expose(t.Context(), control.ExposeSpan, true); err == nil || listed() != 1 {
		t.Errorf("not told: %v, %d surfaces, want those of before", err, listed())
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := expose(canceled, control.ExposeWritten, false); err != nil || listed() != 1 {
		t.Errorf("canceled: %v, %d surfaces, want those of before", err, listed())
	}
}
