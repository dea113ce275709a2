// SPDX-License-Identifier: Apache-2.0

package bell

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/windows"
)

// A Bell is the side that rings. Its methods may be called concurrently.
type Bell struct {
	word *atomic.Uint32
	id   [IDSize]byte

	mu   sync.Mutex
	next windows.Handle // the event of the value after this one; 0 once closed
}

// Hang makes the bell of a number in shared memory and writes its name to id, IDSize
// bytes of it. The caller closes it while the memory is still there.
func Hang(word *atomic.Uint32, id []byte) (*Bell, error) {
	b := &Bell{word: word}
	rand.Read(b.id[:])
	var err error
	if b.next, err = newEvent(b.id, word.Load()+1); err != nil {
		return nil, err
	}
	copy(id[:IDSize], b.id[:])
	return b, nil
}

// Ring adds one to the number and wakes all who wait. Without memory for the next
// event it closes the bell.
func (b *Bell) Ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	value := b.word.Load() + 1
	rung := b.next
	if rung == 0 {
		b.word.Store(value)
		return
	}
	// There is an event for each value that somebody may wait for next.
	b.next = 0
	if next, err := newEvent(b.id, value+1); err == nil {
		b.next = next
	}
	b.word.Store(value)
	windows.SetEvent(rung)
	windows.CloseHandle(rung) // it stays for those who wait
}

// Close takes the bell away: who waits is woken, and who comes later gets ErrGone.
// It is idempotent.
func (b *Bell) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == 0 {
		return nil
	}
	next := b.next
	b.next = 0
	return errors.Join(
		os.NewSyscallError("SetEvent", windows.SetEvent(next)),
		os.NewSyscallError("CloseHandle", windows.CloseHandle(next)))
}

// Wait returns when the number is not seen any more. It fails when ctx ends, with its cause, and with ErrGone.
func Wait(ctx context.Context, word *atomic.Uint32, id []byte, seen uint32) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if word.Load() != seen {
		return nil
	}
	name, err := windows.UTF16PtrFromString(eventName([IDSize]byte(id[:IDSize]), seen+1))
	if err != nil {
		return err
	}
	rung, err := windows.OpenEvent(windows.SYNCHRONIZE, false, name)
	if errors.Is(err, windows.ERROR_FILE_NOT_FOUND) {
		if word.Load() != seen { // it went with the change
			return nil
		}
		return ErrGone
	}
	if err != nil {
		return os.NewSyscallError("OpenEvent", err)
	}
	defer windows.CloseHandle(rung)
	events := []windows.Handle{rung}
	if ctx.Done() != nil {
		canceled, err := windows.CreateEvent(nil, 1, 0, nil)
		if err != nil {
			return os.NewSyscallError("CreateEvent", err)
		}
		defer windows.CloseHandle(canceled)
		set := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			windows.SetEvent(canceled)
			close(set)
		})
		defer func() {
			if !stop() {
				<-set
			}
		}()
		events = append(events, canceled)
	}
	if _, err := windows.WaitForMultipleObjects(events, false, windows.INFINITE); err != nil {
		return os.NewSyscallError("WaitForMultipleObjects", err)
	}
	switch {
	case word.Load() != seen:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return ErrGone // it rang for no change: it was closed
}

// eventName is a name for all sessions: a service and its users are in several.
func eventName(id [IDSize]byte, value uint32) string {
	return fmt.Sprintf(`Global\memspan-%x-%d`, id, value)
}
