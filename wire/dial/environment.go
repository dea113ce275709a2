// SPDX-License-Identifier: Apache-2.0

package dial

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
)

// The variables that tell programs which do not know memspan, but carry code
// that does, where their server is.
const (
	ServerVariable    = "MEMSPAN_SERVER"     // an address as Complete takes it; else MEMSPAN_ADDRESS, else the default
	TokenVariable     = "MEMSPAN_TOKEN"      // the token itself
	TokenFileVariable = "MEMSPAN_TOKEN_FILE" // instead: a file with it
	CAVariable        = "MEMSPAN_TLS_CA"     // file with authorities (PEM) that may vouch for the server
	CertVariable      = "MEMSPAN_TLS_CERT"   // file with the client's certificate (PEM)
	KeyVariable       = "MEMSPAN_TLS_KEY"    // file with its key (PEM)

	addressVariable = "MEMSPAN_ADDRESS" // what the memspan command dials
)

// Environment returns what the variables say. Empty ones say nothing.
func Environment() (address string, o Options, err error) {
	if o.Token, err = ReadToken(os.Getenv(TokenFileVariable)); err != nil {
		return "", Options{}, err
	}
	o.Token = cmp.Or(os.Getenv(TokenVariable), o.Token)
	if o.TLS, err = TLS(os.Getenv(CAVariable), os.Getenv(CertVariable), os.Getenv(KeyVariable)); err != nil {
		return "", Options{}, err
	}
	address = cmp.Or(os.Getenv(ServerVariable), os.Getenv(addressVariable))
	return Complete(address, o.Token != ""), o, nil
}

// Complete makes an address of HOST:PORT, with #FINGERPRINT or without: tls://,
// but tcp:// if the host is a loopback address and a token is at hand. Anything
// else it returns as it is.
func Complete(server string, token bool) string {
	if server == "" || strings.HasPrefix(server, "unix:") || strings.Contains(server, "/") {
		return server
	}
	hostport, _, pinned := strings.Cut(server, "#")
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return server
	}
	ip := net.ParseIP(host)
	if loopback := host == "localhost" || ip != nil && ip.IsLoopback(); loopback && token && !pinned {
		return "tcp://" + server
	}
	return "tls://" + server
}

// ReadToken returns the token in a file, without the white space around it; the
// empty path is no token.
func ReadToken(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	const how = "a server and its clients have the same one; make it: head -c 32 /dev/urandom | base64 >"
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("token file: %w; %s%s", err, how, path)
	}
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	token := strings.TrimSpace(string(data))
	if token == "" {
		return "", fmt.Errorf("token file %s is empty; %s%s", path, how, path)
	}
	return token, nil
}

// TLS returns the configuration of the given files, nil if there are none: the
// authorities that may vouch for the server, and the client's own certificate
// with its key.
func TLS(ca, cert, key string) (*tls.Config, error) {
	if ca == "" && cert == "" && key == "" {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13}
	if ca != "" {
		data, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("certificate authorities: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("certificate authorities: %s holds no certificate in PEM form", ca)
		}
	}
	if (cert == "") != (key == "") {
		return nil, errors.New("a client certificate and its key go together")
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("client certificate %s, key %s: %w", cert, key, err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
