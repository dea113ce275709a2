// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/memspan/memspan/internal/blocks"
	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/sharedbuf"
)

// A conn is one guest's connection. Its reader carries out what is short itself
// and has the rest done by goroutines that it waits for.
type conn struct {
	h     *Host
	nc    net.Conn
	files *fdpass.Conn // of a unix socket; else nil
	guest guest
	r     *bufio.Reader
	timed bool // reads are of a message that has begun; the reader's

	writeMu sync.Mutex
	out     []byte         // a reply's frame, reused
	records *blocks.Writer // made when needed

	ctx    context.Context
	cancel context.CancelFunc
	slots  chan struct{}  // one token for each request that is carried out
	work   sync.WaitGroup // requests
	jobs   jobs

	memory   memory // for copies of buffers
	mu       sync.Mutex
	underWay map[int64]context.CancelCauseFunc // requests, by id
	replicas map[uint32]*replica               // of buffers whose bytes are sent, by id
}

func newConn(h *Host, nc net.Conn, who guest) *conn {
	c := &conn{
		h: h, nc: nc, guest: who,
		slots:    make(chan struct{}, h.config.MaxInFlight),
		underWay: make(map[int64]context.CancelCauseFunc),
		replicas: make(map[uint32]*replica),
		memory:   memory{what: "a connection", most: h.config.MaxCopies, more: &h.memory},
	}
	if u, ok := nc.(*net.UnixConn); ok {
		c.files = fdpass.New(u)
		c.nc = c.files
	}
	c.r = bufio.NewReaderSize(timedReader{c}, 4+sharedbuf.MaxRequest)
	return c
}

// errEnd ends a connection whose place in the stream is lost, or which has ended.
var errEnd = errors.New("host: the connection ends")

// serve answers requests until the connection or ctx ends.
func (c *conn) serve(ctx context.Context) {
	c.ctx, c.cancel = context.WithCancel(ctx)
	stop := context.AfterFunc(c.ctx, func() { c.nc.Close() }) // a reply that cannot be sent ends it too
	defer stop()
	defer c.nc.Close() // with fdpass: the files that nobody took
	defer c.dropAll()
	defer c.jobs.end()
	defer c.work.Wait()
	defer c.cancel()
	for c.ctx.Err() == nil {
		body, err := c.next()
		if err != nil {
			var broken *sharedbuf.Error
			if errors.Is(err, fdpass.ErrTooMany) {
				err = &sharedbuf.Error{Code: sharedbuf.ErrLimit, Message: "the descriptors that came cannot be held", Err: err}
			}
			switch {
			case errors.As(err, &broken):
				c.reply(0, nil, err)
				linger(c.nc)
			case err == io.EOF:
				c.finish()
			}
			return
		}
		request, err := sharedbuf.ParseRequest(body)
		if err != nil {
			err = c.refuse(request, err)
		} else {
			err = c.handle(request)
		}
		if err != nil {
			linger(c.nc)
			return
		}
		c.dropFiles()
	}
}

// refuse answers a request that cannot be meant; nil: of which nothing is known. Its
// error ends the connection: bytes may follow that are no request.
func (c *conn) refuse(r *sharedbuf.Request, why error) error {
	if r == nil || r.API == "" || r.API == sharedbuf.APIBufferTest || r.Blocks || c.guest.unknown || errors.Is(why, sharedbuf.ErrUnsupported) {
		id := int64(0)
		if r != nil {
			id = r.ID
		}
		c.reply(id, nil, why)
		return errEnd
	}
	if r.ID == 0 {
		c.settle()
	}
	c.reply(r.ID, nil, why)
	return nil
}

// dropFiles closes the descriptors that came with what has been read to its end and
// that nobody took: they are none of the next request's.
func (c *conn) dropFiles() {
	for c.files != nil {
		f, err := c.files.TakeRead(c.r.Buffered())
		if err != nil {
			return
		}
		f.Close()
	}
}

// A timedReader reads from a connection, and within a message it waits for the next
// byte for so long only.
type timedReader struct{ c *conn }

func (t timedReader) Read(p []byte) (int, error) {
	if t.c.timed {
		t.c.nc.SetReadDeadline(time.Now().Add(t.c.h.config.IOTimeout))
	}
	return t.c.nc.Read(p)
}

// within has reads wait for so long only until the function that it returns is
// called: they are of a message that has begun.
func (c *conn) within() (done func()) {
	c.timed = true
	return func() {
		c.timed = false
		c.nc.SetReadDeadline(time.Time{})
	}
}

// Bounds of linger.
const (
	lingerTime  = time.Second
	lingerBytes = 1 << 20
)

// linger ends the bytes that go to a guest and reads on for a while what comes:
// a connection that is closed with bytes unread is reset, and the guest may lose
// the answer that says why.
func linger(nc net.Conn) {
	half, ok := nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	nc.SetReadDeadline(time.Now().Add(lingerTime))
	io.CopyN(io.Discard, nc, lingerBytes) // however that ends
}

// next reads a request's body, which is valid until more is read. Between requests it waits for ever, within one
// for as long as bytes come.
func (c *conn) next() ([]byte, error) {
	if c.guest.unknown { // he is not waited for
		c.nc.SetReadDeadline(time.Now().Add(c.h.config.IOTimeout))
	}
	if _, err := c.r.Peek(1); err != nil {
		return nil, err
	}
	if !c.whole() {
		defer c.within()()
	}
	return sharedbuf.ReadFrame(c.r, sharedbuf.MaxRequest)
}

// whole reports whether the next request is there already.
func (c *conn) whole() bool {
	const header = 4
	if c.r.Buffered() < header {
		return false
	}
	head, err := c.r.Peek(header)
	return err == nil && uint64(c.r.Buffered()-header) >= uint64(binary.BigEndian.Uint32(head))
}

// handle answers one request, or sees to it that it is answered. Its error ends
// the connection.
func (c *conn) handle(r *sharedbuf.Request) error {
	if err := c.hello(r); err != nil {
		c.h.config.Logger.Warn("connection refused", "from", c.nc.RemoteAddr(), "error", err)
		c.reply(r.ID, nil, err)
		return err
	}
	if r.ID == 0 { // answered in order: what was asked before comes first
		c.settle()
	}
	if r.Blocks {
		tookBack, err := c.takeBlocks(r)
		if tookBack {
			err = &sharedbuf.Error{Code: sharedbuf.ErrCanceled, Op: r.API, Path: r.Path, Message: "the guest took it back"}
		}
		if err != nil {
			c.reply(r.ID, nil, err)
			if tookBack {
				return nil
			}
			return err
		}
	}
	switch r.API {
	case sharedbuf.APIHello:
		c.reply(r.ID, struct{}{}, nil)
	case sharedbuf.APIEcho:
		text, err := echo(r)
		c.reply(r.ID, text, err)
	case sharedbuf.APIBufferTest:
		return c.bufferTest(r)
	case sharedbuf.APIPerformance:
		c.do(r, true, nil, func(ctx context.Context) (any, error) { return c.h.performance(ctx, r) })
	case sharedbuf.APIShared:
		c.shared(r)
	case sharedbuf.APIJob:
		c.job(r)
	case sharedbuf.APICopy:
		c.reply(r.ID, struct{}{}, c.copyOf(r))
	case sharedbuf.APICancel:
		c.mu.Lock()
		cancel := c.underWay[r.Cancel]
		c.mu.Unlock()
		if cancel != nil {
			cancel(&sharedbuf.Error{Code: sharedbuf.ErrCanceled, Message: "the guest gave it up"})
		}
		c.reply(r.ID, map[string]bool{"canceled": cancel != nil}, nil)
	default:
		c.reply(r.ID, nil, &sharedbuf.Error{Code: sharedbuf.ErrUnsupported, Message: fmt.Sprintf("there is no api %q here", r.API)})
	}
	return nil
}

// shared carries out operations on a buffer.
func (c *conn) shared(r *sharedbuf.Request) {
	name, err := r.OperationName()
	if err != nil {
		name = sharedbuf.APIShared
	}
	var file *os.File
	if strings.HasPrefix(r.Path, sharedbuf.MemfdPrefix) {
		// Descriptors are in the order of the requests that they came with.
		file, err = c.take()
	}
	var w *work
	if err == nil {
		w, err = c.prepare(r, file)
	}
	if err != nil {
		c.reply(r.ID, nil, place(err, name, r.Path))
		return
	}
	if r.Background {
		id, err := c.jobs.start(c, w)
		if err != nil {
			w.close()
			c.reply(r.ID, nil, place(err, name, r.Path))
			return
		}
		c.reply(r.ID, sharedbuf.Result{Operation: name, BufferID: uint32(r.BufferID), Status: "running", Job: id}, nil)
		return
	}
	c.do(r, true, w, func(ctx context.Context) (any, error) {
		result, err := c.h.do(ctx, w)
		if err != nil {
			return nil, place(err, name, r.Path)
		}
		return result, nil
	})
}

func (c *conn) take() (*os.File, error) {
	if c.files == nil {
		return nil, &sharedbuf.Error{Code: sharedbuf.ErrUnsupported, Message: "buffers without a name come over unix sockets only"}
	}
	f, err := c.files.Take() // perhaps with bytes of the next request, too
	if err != nil {
		return nil, &sharedbuf.Error{Code: sharedbuf.ErrInvalid, Message: "the buffer has no name, and no descriptor came with the request", Err: err}
	}
	return f, nil
}

// do carries out a request and answers it: at once if it has no id, or if it is brief
// and nothing has come after it, which spares a switch of goroutines; else beside the
// others. Without a slot of its own it is bounded by other means. The work that the
// request is about, nil for none, it closes in the end, whether f was called or not.
func (c *conn) do(r *sharedbuf.Request, slot bool, w *work, f func(ctx context.Context) (any, error)) {
	if r.ID == 0 {
		if !w.brief() {
			defer c.unread()()
		}
		result, err := f(c.ctx)
		c.answer(c.ctx, r, w, func() {}, result, err)
		return
	}
	ctx, cancel := context.WithCancelCause(c.ctx)
	c.mu.Lock()
	_, twice := c.underWay[r.ID]
	if !twice {
		c.underWay[r.ID] = cancel
	}
	c.mu.Unlock()
	if twice {
		// Its answer could not be told from the other's.
		cancel(nil)
		w.close()
		c.reply(r.ID, nil, &sharedbuf.Error{Code: sharedbuf.ErrInvalid, Message: fmt.Sprintf("request %d is under way already", r.ID)})
		c.cancel()
		return
	}
	carryOut := func(slot bool) {
		defer cancel(nil)
		result, err := f(ctx)
		c.answer(ctx, r, w, func() {
			if slot {
				<-c.slots
			}
			c.mu.Lock()
			delete(c.underWay, r.ID)
			c.mu.Unlock()
		}, result, err)
	}
	if slot && w.brief() && c.r.Buffered() == 0 {
		carryOut(false)
		return
	}
	if slot {
		select {
		case c.slots <- struct{}{}:
		default:
			done := c.unread()
			c.slots <- struct{}{} // requests end: there will be one
			done()
		}
	}
	c.work.Go(func() { carryOut(slot) })
}

// answer answers a request about a buffer, with what the host changed of it if
// its bytes are sent. It calls ended when ctx is not needed any more, and closes the
// work: who has his answer finds that given back which it took.
func (c *conn) answer(ctx context.Context, r *sharedbuf.Request, w *work, ended func(), result any, err error) {
	done, err := w.changes(ctx, err)
	ended()
	if done == nil {
		w.close()
		c.replySealed(r.ID, w, result, err)
		return
	}
	w.replica.sending.Lock()
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	c.out = sharedbuf.AppendReplyBeforeBlocks(c.out[:0], r.ID, result, err)
	c.write(c.out)
	if c.records == nil {
		c.records = new(blocks.Writer)
	}
	c.records.Reset(timedWriter{c})
	serr := w.replica.sendChanged(c.records)
	// Before the last record: after it the guest may send blocks.
	w.replica.sending.Unlock()
	done()
	w.close()
	if serr == nil {
		serr = c.records.End(false)
	}
	if serr != nil {
		c.cancel() // the guest waits for what will not come
	}
}

// replySealed answers a request about a buffer that may be encrypted.
func (c *conn) replySealed(id int64, w *work, result any, err error) {
	turn := uint64(0)
	if w != nil {
		turn = w.sealed
	}
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	c.out = sharedbuf.AppendReplySealed(c.out[:0], id, result, err, turn)
	c.write(c.out)
}

// changes returns what ends the look for changes that go with the answer; nil if
// none do. It returns with what error the answer is.
func (w *work) changes(ctx context.Context, err error) (done func(), _ error) {
	switch {
	case w == nil || w.replica == nil || !w.write:
		return nil, err
	case w.written == nil && !w.request.Background: // it was refused
		return nil, err
	case w.written == nil:
		// A job's: what others write meanwhile may take long.
		done, uerr := w.replica.use(ctx, false)
		return done, cmp.Or(err, uerr)
	case ctx.Err() == nil:
		return w.written, err
	}
	// The guest has given up, and does not want to be told.
	w.replica.lose()
	w.written()
	return nil, cmp.Or(err, place(context.Cause(ctx), w.chain[0].Operation, w.request.Path))
}

// A timedWriter writes to a connection whose writeMu is held, for as long as the
// guest takes something now and then.
type timedWriter struct{ c *conn }

func (t timedWriter) Write(p []byte) (written int, err error) {
	for {
		t.c.nc.SetWriteDeadline(time.Now().Add(t.c.h.config.IOTimeout))
		n, err := t.c.nc.Write(p[written:])
		written += n
		if err == nil || n == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return written, err
		}
	}
}

// echo returns the input, which must be a string.
func echo(r *sharedbuf.Request) (any, error) {
	var input string
	if err := json.Unmarshal(r.Input, &input); err != nil {
		return nil, &sharedbuf.Error{Code: sharedbuf.ErrInvalid, Op: r.API, Message: "the input is no string"}
	}
	return input, nil
}

// reply answers a request, in one write. A guest that does not read its answers
// loses the connection.
func (c *conn) reply(id int64, result any, err error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	c.out = sharedbuf.AppendReply(c.out[:0], id, result, err)
	c.write(c.out)
}

// write sends p; c.writeMu is held.
func (c *conn) write(p []byte) {
	if _, err := (timedWriter{c}).Write(p); err != nil {
		c.cancel()
	}
}

// place says in an error what was asked and on what.
func place(err error, op, path string) error {
	placed := &sharedbuf.Error{Code: sharedbuf.ErrFailed, Op: op, Path: path, Message: err.Error()}
	var e *sharedbuf.Error
	var code sharedbuf.Code
	switch {
	case errors.As(err, &e):
		placed.Code = e.Code
		if err == error(e) {
			placed.Message, placed.Err = e.Message, e.Err
		} else {
			placed.Message = strings.Replace(placed.Message, string(e.Code)+": ", "", 1)
		}
	case errors.As(err, &code):
		placed.Code = code
	case canceled(err):
		placed.Code, placed.Message = sharedbuf.ErrCanceled, "the connection ended, or the host is stopping"
	}
	return placed
}
