// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"math"
	"net"
	"strings"
	"testing"
)

func TestSize(t *testing.T) {
	for _, tc := range []struct {
		text string
		want int64
		err  string
	}{
		{text: "0", want: 0},
		{text: "4096", want: 4096},
		{text: "64KiB", want: 64 << 10},
		{text: " 1.5 GiB ", want: 3 << 29},
		{text: "4GB", want: 4e9},
		{text: "9223372036854775807", want: math.MaxInt64},
		{text: "9223372036854775808", err: "more than the largest"},
		{text: "16EiB", err: "is no size"},
		{text: "-1", err: "negative"},
		{text: "", err: "is no size"},
		{text: "many", err: "is no size"},
		{text: "12 parsecs", err: "is no size"},
	} {
		var got size
		err := got.Set(tc.text)
		switch {
		case tc.err != "":
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("size %q: error %v, want one with %q", tc.text, err, tc.err)
			}
		case err != nil || int64(got) != tc.want:
			t.Errorf("size %q = %d, %v; want %d", tc.text, got, err, tc.want)
		}
	}
}

func TestSizes(t *testing.T) {
	var got sizes
	if err := got.Set("4KiB,1MiB,7"); err != nil || len(got) != 3 || got[0] != 4096 || got[1] != 1<<20 || got[2] != 7 {
		t.Errorf("sizes = %v, %v", got, err)
	}
	if s := got.String(); s != "4KiB,1MiB,7B" {
		t.Errorf("String() = %q", s)
	}
	for _, bad := range []string{"", "4KiB,", "0", "4KiB,-1"} {
		if err := got.Set(bad); err == nil {
			t.Errorf("sizes %q: no error", bad)
		}
	}
}

func TestHumanSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 512: "512 B", 4096: "4 KiB", 1536: "1.5 KiB", 100 << 20: "100 MiB"} {
		if got := humanSize(n); got != want {
			t.Errorf("humanSize(%d) = %q, want %q", n, got, want)
		}
	}
}

// TestListenRules holds the rules of docs/security.md: nothing on the network
// without proof of who is there, nothing off this machine without TLS.
func TestListenRules(t *testing.T) {
	const token, ca, cert = "t", "ca", "crt"
	for _, tc := range []struct {
		name      string
		flags     listenFlags
		ip        string
		encrypted bool
		err       string
	}{
		{"loopback, nothing", listenFlags{}, "127.0.0.1", false, "--token-file"},
		{"loopback, TLS alone", listenFlags{tls: true}, "127.0.0.1", false, "--token-file"},
		{"loopback, token", listenFlags{tokenFile: token}, "127.0.0.1", false, ""},
		{"loopback v6, token", listenFlags{tokenFile: token}, "::1", false, ""},
		{"loopback, token and TLS", listenFlags{tokenFile: token, tls: true}, "127.0.0.1", true, ""},
		{"loopback, client certificates", listenFlags{tlsClientCA: ca}, "127.0.0.1", true, ""},
		{"loopback, token and certificate", listenFlags{tokenFile: token, tlsCert: cert}, "127.0.0.1", true, ""},
		{"everywhere, nothing", listenFlags{}, "0.0.0.0", false, "--token-file"},
		{"everywhere v6, nothing", listenFlags{}, "::", false, "--token-file"},
		{"everywhere, certificate alone", listenFlags{tlsCert: cert}, "0.0.0.0", false, "--tls-client-ca"},
		{"everywhere, TLS alone", listenFlags{tls: true}, "0.0.0.0", false, "--token-file"},
		{"everywhere, token", listenFlags{tokenFile: token}, "0.0.0.0", true, ""},
		{"elsewhere, token", listenFlags{tokenFile: token}, "192.0.2.1", true, ""},
		{"elsewhere, client certificates", listenFlags{tlsCert: cert, tlsClientCA: ca}, "192.0.2.1", true, ""},
	} {
		encrypted, err := tc.flags.encrypted(&net.TCPAddr{IP: net.ParseIP(tc.ip), Port: 7070})
		if tc.err != "" {
			var usage *usageError
			if !errors.As(err, &usage) || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: error %v, want a usage error that names %s", tc.name, err, tc.err)
			}
			continue
		}
		if err != nil || encrypted != tc.encrypted {
			t.Errorf("%s: encrypted %v, %v; want %v", tc.name, encrypted, err, tc.encrypted)
		}
	}
}

func TestPatternCheckFindsWrongWords(t *testing.T) {
	for _, p := range patterns {
		for _, n := range []int{1, 3, 4, 7, 4096, 4099} {
			data := make([]byte, n)
			p.store(data, 0)
			if off, want, got, ok := p.check(data, 0); !ok {
				t.Fatalf("%s, %d bytes: wrong at %d: %#x, %#x", p.name, n, off, want, got)
			}
			for _, i := range []int{0, n / 2, n - 1} {
				data[i] ^= 0x40
				if off, want, got, ok := p.check(data, 0); ok || off != int64(i&^3) || want == got {
					t.Errorf("%s, %d bytes, flipped at %d: found %v at %d (%#x, %#x)", p.name, n, i, !ok, off, want, got)
				}
				data[i] ^= 0x40
			}
		}
	}
}

func TestPositionPatternFindsMisplacedBytes(t *testing.T) {
	const block = 64 << 10
	data := make([]byte, 4*block)
	p := patterns[1]
	p.store(data, 0)
	copy(data[2*block:3*block], data[block:2*block])
	if off, _, _, ok := p.check(data, 0); ok || off != 2*block {
		t.Errorf("a block in the place of the next: found %v at %d", !ok, off)
	}
}

func TestKernelVersion(t *testing.T) {
	for release, want := range map[string][2]int{"6.1.0-18-amd64": {6, 1}, "6.18.44": {6, 18}, "5.10": {5, 10}} {
		major, minor, ok := kernelVersion(release)
		if !ok || major != want[0] || minor != want[1] {
			t.Errorf("%s: %d.%d, %v", release, major, minor, ok)
		}
	}
	if _, _, ok := kernelVersion("plan 9"); ok {
		t.Error("plan 9 has a kernel version")
	}
}

func TestProcessLimit(t *testing.T) {
	const limits = `Limit                     Soft Limit           Hard Limit           Units
Max locked memory         8388608              unlimited            bytes
Max open files            1024                 524288               files
Max cpu time              unlimited            unlimited            seconds
`
	for label, want := range map[string]int64{"Max locked memory": 8388608, "Max open files": 1024, "Max cpu time": -1} {
		if n, ok := processLimit(limits, label); !ok || n != want {
			t.Errorf("%s: %d, %v; want %d", label, n, ok, want)
		}
	}
	if _, ok := processLimit(limits, "Max patience"); ok {
		t.Error("found a limit that is not there")
	}
}

// TestHelp holds every command to telling what it does and showing how.
func TestHelp(t *testing.T) {
	for _, cmd := range newRoot().Commands() {
		if cmd.Short == "" || cmd.Hidden {
			if cmd.Short == "" {
				t.Errorf("%s: no short description", cmd.Name())
			}
			continue
		}
		if !strings.Contains(cmd.Example, "  memspan "+cmd.Name()) {
			t.Errorf("%s: no example in its help", cmd.Name())
		}
	}
}
