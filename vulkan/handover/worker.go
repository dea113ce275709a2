// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
)

// A Worker is the daemon's end. One goroutine at a time calls Next; the other
// methods may be called concurrently.
type Worker struct {
	conn  *net.UnixConn
	lines *bufio.Scanner
}

// Begin tells the worker at the other end of conn what it is for. It owns conn
// from now on; client, a socket, stays the caller's, who closes it.
func Begin(conn *net.UnixConn, s Start, client *os.File) (*Worker, error) {
	if err := send(conn, s, client); err != nil {
		conn.Close()
		return nil, fmt.Errorf("handover: %w", err)
	}
	w := &Worker{conn: conn, lines: bufio.NewScanner(conn)}
	w.lines.Buffer(nil, longest)
	return w, nil
}

// Next waits for what the worker reports next. It returns io.EOF when the
// worker is about to end.
func (w *Worker) Next() (Status, error) {
	var s Status
	if !w.lines.Scan() {
		if err := w.lines.Err(); err != nil {
			return s, err
		}
		return s, io.EOF
	}
	if err := json.Unmarshal(w.lines.Bytes(), &s); err != nil {
		return s, fmt.Errorf("handover: status: %w", err)
	}
	return s, nil
}

// End asks the worker to end.
func (w *Worker) End() { w.conn.CloseWrite() } // an error means that it has ended

// Close closes the socket.
func (w *Worker) Close() error { return w.conn.Close() }
