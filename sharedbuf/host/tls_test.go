// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/sharedbuf/host"
)

const token = "0123456789abcdef-the-token"

// A quietLog is what a host logs.
type quietLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *quietLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *quietLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// secured runs a host that speaks TLS and returns its address.
func secured(t testing.TB, config host.Config, clients *x509.CertPool) (address string, log *quietLog) {
	t.Helper()
	cert, fingerprint, err := server.SelfSigned(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	tc := &tls.Config{Certificates: []tls.Certificate{cert}}
	if clients != nil {
		tc.ClientCAs, tc.ClientAuth = clients, tls.VerifyClientCertIfGiven
		if config.Token == "" {
			tc.ClientAuth = tls.RequireAndVerifyClientCert
		}
	}
	log = new(quietLog)
	config.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	ln := tcp(t)
	serve(t, host.TLSListener(ln, tc), config)
	return "tls://" + ln.Addr().String() + "#" + fingerprint, log
}

// clientCertificate returns a certificate, and the pool that vouches for it.
func clientCertificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func TestTLS(t *testing.T) {
	mine, pool := clientCertificate(t)
	other, _ := clientCertificate(t)
	byToken, log := secured(t, host.Config{Token: token}, nil)
	byCertificate, _ := secured(t, host.Config{}, pool)
	either, _ := secured(t, host.Config{Token: token}, pool)
	neither, _ := secured(t, host.Config{}, nil)
	plainListener := tcp(t)
	serve(t, plainListener, host.Config{})
	plain := plainListener.Addr().String()
	another := byToken[:len(byToken)-1] + "0"
	if another == byToken {
		another = byToken[:len(byToken)-1] + "1"
	}
	certificate := func(c tls.Certificate) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{c}} }
	hostport := func(address string) string {
		return strings.TrimPrefix(address[:strings.Index(address, "#")], "tls://")
	}
	for name, test := range map[string]struct {
		address string
		options sharedbuf.Options
		want    []error // any of them; none: let in
	}{
		"token":                    {byToken, sharedbuf.Options{Token: token}, nil},
		"no token":                 {byToken, sharedbuf.Options{}, []error{sharedbuf.ErrDenied}},
		"another token":            {byToken, sharedbuf.Options{Token: "another"}, []error{sharedbuf.ErrDenied}},
		"another host":             {another, sharedbuf.Options{Token: token}, []error{sharedbuf.ErrDenied}},
		"unknown authority":        {"tls://" + hostport(byToken), sharedbuf.Options{Token: token}, []error{sharedbuf.ErrDenied}},
		"no TLS":                   {hostport(byToken), sharedbuf.Options{Token: token}, []error{sharedbuf.ErrPeerLost}},
		"TLS to a plain port":      {"tls://" + plain + byToken[strings.Index(byToken, "#"):], sharedbuf.Options{Token: token}, []error{sharedbuf.ErrInvalid, sharedbuf.ErrPeerLost}},
		"no fingerprint":           {"tls://" + hostport(byToken) + "#beef", sharedbuf.Options{}, []error{sharedbuf.ErrInvalid}},
		"certificate":              {byCertificate, sharedbuf.Options{TLS: certificate(mine)}, nil},
		"no certificate":           {byCertificate, sharedbuf.Options{Token: token}, []error{sharedbuf.ErrDenied}},
		"another certificate":      {byCertificate, sharedbuf.Options{TLS: certificate(other)}, []error{sharedbuf.ErrDenied}},
		"either: token":            {either, sharedbuf.Options{Token: token}, nil},
		"either: certificate":      {either, sharedbuf.Options{TLS: certificate(mine)}, nil},
		"either: none":             {either, sharedbuf.Options{}, []error{sharedbuf.ErrDenied}},
		"nobody is let in":         {neither, sharedbuf.Options{}, []error{sharedbuf.ErrDenied}},
		"nobody, with a token too": {neither, sharedbuf.Options{Token: token}, []error{sharedbuf.ErrDenied}},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := sharedbuf.Dial(t.Context(), test.address, test.options)
			if err == nil {
				defer c.Close()
				_, err = c.Echo(t.Context(), "x") // of a plain connection nothing is known before
			}
			if len(test.want) == 0 && err != nil {
				t.Fatal(err)
			}
			matched := len(test.want) == 0
			for _, want := range test.want {
				matched = matched || errors.Is(err, want)
			}
			if !matched {
				t.Fatalf("%v, want %v", err, test.want)
			}
			if err != nil {
				return
			}
			b := alloc(t, c, 200_000)
			scribble(b.Bytes())
			sum := castagnoli(b.Bytes())
			if r, err := b.Process(t.Context(), sharedbuf.Checksum(), sharedbuf.Fill(7)); err != nil || decode[uint32](t, r.Steps[0].Value) != sum || b.Bytes()[0] != 7 {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
	if text := log.String(); strings.Contains(text, token) || !strings.Contains(text, "connection refused") {
		t.Errorf("the log shows the token, or no refusal: %s", text)
	}
}

// Before a guest is known nothing is done for him.
func TestNothingBeforeTheToken(t *testing.T) {
	address, _ := secured(t, host.Config{Token: token}, nil)
	for _, request := range []map[string]any{
		{"api": "echo", "request_id": 1, "input": "x"},
		{"api": "shared_buffer_copy", "request_id": 1, "operation": "open", "buffer_id": 1, "buffer_size": 10},
		{"api": "hello", "request_id": 1},
		{"api": "hello", "request_id": 1, "token": token + "x"},
	} {
		hostport := strings.TrimPrefix(address[:strings.Index(address, "#")], "tls://")
		nc, err := tls.Dial("tcp", hostport, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		nc.SetDeadline(time.Now().Add(patience))
		g := newRawGuest(t, nc)
		if reply := g.ask(request); reply.Code != sharedbuf.ErrDenied || strings.Contains(reply.Error, token) {
			t.Errorf("%v: %+v", request, reply)
		}
		g.wantEnd()
		nc.Close()
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	var log bytes.Buffer
	r := sharedbuf.Request{API: sharedbuf.APIHello, Token: token}
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "token", r.Token)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "token", r.Token)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		fmt.Fprintf(&log, verb+" "+verb, r, r.Token)
	}
	if strings.Contains(log.String(), token) || strings.Contains(log.String(), fmt.Sprintf("%x", token)) {
		t.Errorf("shown: %s", log.String())
	}
}
