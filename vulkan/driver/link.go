// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
	"github.com/memspan/memspan/wire"
)

// dialTimeout bounds connecting and the worker's start.
const dialTimeout = 30 * time.Second

// stallAfter is how long a write may wait for the worker, which perhaps waits
// for us to read, until somebody does.
const stallAfter = 2 * time.Millisecond

// errLost is what every call on a lost link fails with.
var errLost = errors.New("driver: the device is lost")

// refusedError is a call that the worker did not carry out.
type refusedError struct {
	result int32
	text   string
}

func (e *refusedError) Error() string {
	return fmt.Sprintf("driver: refused by the worker: %s (VkResult %d)", e.text, e.result)
}

// A link is the connection to a worker.
type link struct {
	d       *Driver
	sc      *stream.Conn
	files   bool   // may be sent
	local   bool   // the worker is on this machine
	direct  bool   // the socket can be waited for in the calling thread
	depth   uint32 // submissions of one queue under way at most; 0: as many as one likes
	serials atomic.Uint64

	ending  sync.Once
	lostErr atomic.Pointer[error]
	gone    chan struct{} // closed when lost

	// Reading: see wait.go.
	readMu  sync.Mutex
	rounds  atomic.Uint64 // how often someone has read
	waiting atomic.Int32  // application threads that wait
	asked   atomic.Bool   // something was sent, or looked for and has not come

	mu      sync.Mutex
	leader  bool // one of those who wait waits for the socket
	parked  []*waiter
	pending map[uint64]*pending

	// The link's goroutines: see tend.go.
	tending  atomic.Bool   // the tender ticks
	nudge    chan struct{} // wakes it
	watching atomic.Bool   // the watch ticks
	loading  atomic.Int32  // requests without a reply that may have the worker load a driver
	guard    chan struct{} // wakes it
	reading  atomic.Bool   // the background reads
	rouse    chan struct{} // wakes it
	pinged   atomic.Bool   // the worker wants to know whether we live
	pingDue  atomic.Bool   // we want to know whether it does
	pingAt   atomic.Int64  // which byte sent was the first ping's since the worker was heard of, about; 0: there was none
	wg       sync.WaitGroup
}

// A pending request, whose reply has not been used.
type pending struct {
	serial uint64
	loads  bool        // it counts in loading
	done   atomic.Bool // flags and body are there
	flags  stream.Flags
	body   []byte
}

// dial connects to a new worker and greets it.
func dial(d *Driver) (*link, error) {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	c, err := d.cfg.Dial(ctx)
	if err != nil {
		return nil, err
	}
	l := &link{
		d: d, sc: stream.New(c.Wire),
		gone:    make(chan struct{}),
		pending: make(map[uint64]*pending),
		nudge:   make(chan struct{}, 1), guard: make(chan struct{}, 1), rouse: make(chan struct{}, 1),
	}
	stop := context.AfterFunc(ctx, func() { c.Wire.Shutdown() })
	err = l.greet(c.Files)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		c.Wire.Close()
		return nil, err
	}
	_, err = l.sc.Await(0)
	l.direct = err == nil
	l.sc.OnStall(stallAfter, l.stalled)
	l.wg.Go(l.tend)
	l.wg.Go(l.watch)
	l.wg.Go(l.background)
	return l, nil
}

// greet exchanges hellos.
func (l *link) greet(files bool) error {
	hello := stream.Hello{Fingerprint: registry.Fingerprint, PID: uint32(os.Getpid()), Name: l.d.cfg.Name}
	if files {
		hello.Flags |= stream.SameMachine
	}
	if err := l.sc.End(hello.Append(l.sc.Begin(stream.OpHello, stream.FlagReply, l.serials.Add(1)))); err != nil {
		return err
	}
	early := newQueryCache()
	l.d.askEarly(l, early)
	if err := l.sc.Flush(); err != nil {
		return err
	}
	m, err := l.sc.Read()
	if err != nil {
		return fmt.Errorf("the worker did not answer: %w", err)
	}
	if m.Op != stream.OpHello || !m.Has(stream.FlagReply) {
		return fmt.Errorf("%w: the worker's first message is operation %#x", stream.ErrMalformed, uint16(m.Op))
	}
	welcome, err := stream.ParseWelcome(m.Body)
	if err != nil {
		return err
	}
	if welcome.Fingerprint != registry.Fingerprint {
		return fmt.Errorf("the worker is another version of memspan (%#x, here %#x): %s", welcome.Fingerprint, registry.Fingerprint, welcome.Text)
	}
	l.d.mu.Lock()
	l.d.early = early
	l.d.mu.Unlock()
	l.d.objects.limit.Store(int64(welcome.Objects))
	l.depth = welcome.Depth
	l.local = welcome.Flags&stream.SameMachine != 0
	l.files = files && l.local
	return nil
}

// lost returns why the link is lost, nil if it is not.
func (l *link) lost() error {
	if err := l.lostErr.Load(); err != nil {
		return *err
	}
	return nil
}

// fail ends the link for good: whoever waits and every later call gets an
// error that matches errLost. Only the first call counts. It is logged before
// anybody knows: who learns of it may end the process.
func (l *link) fail(why error) {
	l.ending.Do(func() {
		if !errors.Is(why, errClosed) {
			l.d.cfg.Logger.Error("device lost", "error", why)
		}
		err := fmt.Errorf("%w: %w", errLost, why)
		l.lostErr.Store(&err)
		close(l.gone)
		l.sc.Wire().Shutdown()
	})
}

// errClosed is a link that we close ourselves.
var errClosed = errors.New("closed")

// close ends the link and waits for its goroutines.
func (l *link) close() {
	if l.lost() == nil {
		_ = l.sc.Flush() // what the worker misses goes with its process
	}
	l.fail(errClosed)
	l.wg.Wait()
	l.d.trace.ended(l)
	l.sc.Close()
}

// failed makes an error of writing or reading the link's loss.
func (l *link) failed(err error) error {
	if errors.Is(err, wire.ErrTooLarge) || errors.Is(err, wire.Unsupported) {
		return err
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("the worker is gone")
	}
	l.fail(err)
	return l.lost()
}

// lastWordTime bounds how long what a worker sent is read that takes nothing any
// more.
const lastWordTime = time.Second

// unsent makes an error of writing the link's loss, once all has been read that
// the worker sent before it ended: it may have said why. It must not be called by
// who reads.
func (l *link) unsent(err error) error {
	if !errors.Is(err, wire.ErrTooLarge) && !errors.Is(err, wire.Unsupported) {
		l.readSoon() // unless an application thread does
		late := time.NewTimer(lastWordTime)
		defer late.Stop()
		select {
		case <-l.gone:
		case <-late.C:
		}
	}
	return l.failed(err)
}

// write sends a message without a reply whose body is head and data. Long data
// is sent at once, from where it is.
func (l *link) write(op stream.Op, head, data []byte) error {
	if err := l.sc.Write(op, 0, 0, head, data); err != nil {
		return l.unsent(err)
	}
	l.expect()
	l.buffered()
	return nil
}

// send sends a message without a reply. It leaves with the next flush, or
// after flushAfter.
func (l *link) send(op stream.Op, body func([]byte) []byte) error {
	if err := l.sc.End(body(l.sc.Begin(op, 0, 0))); err != nil {
		return l.unsent(err)
	}
	l.buffered()
	return nil
}

// sendCall sends a command whose result nobody waits for.
func (l *link) sendCall(cmd registry.Index, a *registry.Args) error {
	return l.encode(cmd, a, 0, 0)
}

func (l *link) encode(cmd registry.Index, a *registry.Args, flags stream.Flags, serial uint64) error {
	if err := l.lost(); err != nil {
		return err
	}
	buf, err := l.d.codec.AppendCall(l.sc.Begin(stream.Op(cmd), flags, serial), &registry.Commands[cmd], a, &l.d.env)
	if err != nil {
		l.sc.Abort()
		return err
	}
	if err := l.sc.End(buf); err != nil {
		return l.unsent(err)
	}
	if flags == 0 {
		l.buffered()
	}
	return nil
}

// buffered sees to it that what waits to be sent is sent some time.
func (l *link) buffered() {
	if l.sc.Waiting() > 0 {
		l.tendSoon()
	}
}

// flush sends what waits.
func (l *link) flush() error {
	l.expect()
	if err := l.sc.Flush(); err != nil {
		return l.unsent(err)
	}
	return nil
}

// call carries out a command in the worker, waits for it and stores its
// outputs. The result is the command's.
func (l *link) call(cmd registry.Index, a *registry.Args) (uint64, error) {
	reply, err := l.roundTrip(cmd, func(serial uint64) error { return l.encode(cmd, a, stream.FlagReply, serial) })
	if err != nil {
		return 0, err
	}
	return l.store(reply, cmd, a)
}

// store stores the outputs of a reply.
func (l *link) store(reply []byte, cmd registry.Index, a *registry.Args) (uint64, error) {
	result, err := l.d.codec.ReadReply(reply, &registry.Commands[cmd], a, &l.d.env)
	if err != nil {
		return 0, l.failed(err)
	}
	return result, nil
}

// ask carries out a command as call does and returns the reply as it came.
func (l *link) ask(cmd registry.Index, a *registry.Args) ([]byte, error) {
	return l.roundTrip(cmd, func(serial uint64) error { return l.encode(cmd, a, stream.FlagReply, serial) })
}

// roundTrip has send send a request with the serial it is given, and waits for
// the reply. cmd is what it counts for.
func (l *link) roundTrip(cmd registry.Index, send func(serial uint64) error) ([]byte, error) {
	p, err := l.begin(cmd, send)
	if err != nil {
		return nil, err
	}
	return l.finish(cmd, p)
}

// begin has send send a request with the serial it is given, on behalf of a
// command. What it returns is for finish, at any time.
func (l *link) begin(cmd registry.Index, send func(serial uint64) error) (*pending, error) {
	if err := l.lost(); err != nil {
		return nil, err
	}
	p := &pending{serial: l.serials.Add(1), loads: loads(cmd)}
	if p.loads {
		l.loading.Add(1)
	}
	l.mu.Lock()
	l.pending[p.serial] = p
	l.mu.Unlock()
	if err := send(p.serial); err != nil {
		l.forget(p)
		if p.loads {
			l.loading.Add(-1)
		}
		return nil, err
	}
	return p, nil
}

func (l *link) forget(p *pending) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.pending, p.serial)
}

// finish waits for the reply to what was begun. Several may do so.
func (l *link) finish(cmd registry.Index, p *pending) ([]byte, error) {
	if !p.done.Load() {
		if err := l.flush(); err != nil {
			return nil, err
		}
		l.d.trace.trip(cmd)
		l.wait(p.done.Load, forever, p.serial)
		if !p.done.Load() {
			return nil, l.lost()
		}
	}
	l.forget(p)
	if p.flags&stream.FlagFailed != 0 {
		result, text, err := stream.ParseFailed(p.body)
		if err != nil {
			return nil, l.failed(err)
		}
		return nil, &refusedError{result, text}
	}
	return p.body, nil
}

// request sends a special operation on behalf of a command and returns the body
// of its reply.
func (l *link) request(cmd registry.Index, op stream.Op, body func([]byte) []byte) ([]byte, error) {
	return l.roundTrip(cmd, func(serial uint64) error {
		if err := l.sc.End(body(l.sc.Begin(op, stream.FlagReply, serial))); err != nil {
			return l.unsent(err)
		}
		return nil
	})
}

// requestFile is request with a file, which stays the caller's.
func (l *link) requestFile(cmd registry.Index, op stream.Op, body func([]byte) ([]byte, error), f *os.File) ([]byte, error) {
	return l.roundTrip(cmd, func(serial uint64) error {
		buf, err := body(l.sc.Begin(op, stream.FlagReply, serial))
		if err != nil {
			l.sc.Abort()
			return err
		}
		if err := l.sc.EndFile(buf, f); err != nil {
			return l.unsent(err)
		}
		return nil
	})
}
