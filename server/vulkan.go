// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/memspan/memspan/internal/confine"
	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/internal/tlslisten"
	"github.com/memspan/memspan/vulkan/handover"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// A VulkanConfig says how Vulkan applications use this machine's GPUs: each
// through a worker process of its own, to which the server hands the
// application's connection. The zero value is usable in a program whose
// arguments "worker vulkan" call render.Worker.
type VulkanConfig struct {
	// Command is the argv that starts a worker: a program that calls
	// render.Worker. Its environment has MEMSPAN_WORKER=vulkan. Empty: this
	// executable with the arguments "worker vulkan".
	Command []string
	// Workers is how many applications there may be at a time; 0: 32.
	Workers int
	// Memory is the most device memory that one application may hold, in
	// bytes; 0: what the device gives.
	Memory int64
	// Objects is how many Vulkan handles one application may hold; 0: 2^20.
	Objects int
	// QueueDepth is how many submissions of one application may be under way;
	// 0: 16384.
	QueueDepth int
	// Deadline is how long one submission may run before the application is
	// told that its device is lost; 0: for ever.
	Deadline time.Duration
	// ShaderCache is a directory, made if it is missing, in which drivers keep
	// what they have compiled. All applications' workers write it. Empty, or if
	// it cannot be made: drivers compile anew for each application.
	ShaderCache string
	// HideHostCoherent treats memory as if it were not coherent, and HideImport
	// drivers as if they could not use an application's memory in place: tests
	// take those paths so.
	HideHostCoherent, HideImport bool
}

// workerGrace is how long a worker may take to end once it has no reason to go
// on: the driver frees what its application held.
const workerGrace = 5 * time.Second

// longestName bounds what an application calls itself, in bytes.
const longestName = 80

func (c *VulkanConfig) withDefaults(log *slog.Logger) (*VulkanConfig, error) {
	if c == nil {
		return nil, nil
	}
	cfg := *c
	if len(cfg.Command) == 0 {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("server: find the program to start as worker: %w", err)
		}
		cfg.Command = []string{self, "worker", "vulkan"}
	}
	cfg.Workers = cmp.Or(cfg.Workers, 32)
	cfg.Objects = cmp.Or(cfg.Objects, 1<<20)
	cfg.QueueDepth = cmp.Or(cfg.QueueDepth, 1<<14)
	if cfg.ShaderCache != "" {
		dir, err := filepath.Abs(cfg.ShaderCache)
		if err == nil {
			err = os.MkdirAll(dir, 0o700)
		}
		if err != nil {
			log.Warn("no shader cache", "reason", err)
			dir = ""
		}
		cfg.ShaderCache = dir
	}
	return &cfg, nil
}

// A lease is what a session has become that lends a GPU: an application's
// worker, and with TLS the relay between the two.
type lease struct {
	log     *slog.Logger
	process *confine.Process
	parent  *net.UnixConn // to the worker, until it is begun

	mu       sync.Mutex // guards what follows
	begun    *handover.Worker
	patience *time.Timer // once the worker has been asked to end: until it is killed
	stat     control.VulkanStat
}

// lendGPU carries out OpVulkan: it starts a worker, hands it the connection and
// returns when the worker has ended, which is the end of the session. If it is
// refused the session goes on. An error means that the connection must end.
func (s *session) lendGPU(h wire.Header, args json.RawMessage) error {
	var a control.Vulkan
	if err := decode(args, &a); err != nil {
		return s.replyError(h, err)
	}
	if s.frames > 1 {
		return s.refuse(h, wire.Invalid, "a session is lent with its first request: dial once more")
	}
	nc, err := s.conn.Detach()
	if err != nil {
		return err
	}
	l, err := s.srv.startLease(s, a)
	if err != nil {
		return s.replyError(h, err)
	}
	defer s.srv.endLease(s)
	err = s.reply(h, control.VulkanStarted{Worker: l.process.PID()})
	if err == nil {
		err = s.handOver(l, nc, a)
	}
	s.conn.Close()
	l.end()
	l.wait()
	return err
}

// startLease starts the worker of a session.
func (srv *Server) startLease(s *session, a control.Vulkan) (*lease, error) {
	cfg := srv.vulkan
	if cfg == nil {
		return nil, &wire.Error{Code: wire.Unsupported, Message: "this server lends no GPU"}
	}
	l := &lease{log: s.log, stat: control.VulkanStat{
		Session: uint64(s.owner), Application: printable(a.Application), PID: a.PID, Since: time.Now().UTC(),
	}}
	if unix, ok := s.raw.(fdpass.Socket); ok {
		if _, _, pid, err := fdpass.PeerCred(unix); err == nil {
			l.stat.PID = pid // by the kernel's word
		}
	} else {
		l.stat.Peer = s.raw.RemoteAddr().String()
	}

	srv.mu.Lock()
	full := srv.lent >= cfg.Workers
	if !full {
		srv.lent++
	}
	srv.mu.Unlock()
	if full {
		return nil, &wire.Error{Code: wire.Limit, Message: fmt.Sprintf("the server has its %d Vulkan applications already", cfg.Workers)}
	}
	variables := []string{handover.WorkerVariable + "=" + handover.WorkerValue}
	if cfg.ShaderCache != "" {
		variables = append(variables, handover.CacheVariable+"="+cfg.ShaderCache)
	}
	var err error
	l.process, l.parent, err = confine.Start(cfg.Command, s.log, variables...)
	if errors.Is(err, errors.ErrUnsupported) {
		err = &wire.Error{Code: wire.Unsupported, Message: err.Error()}
	}
	if err == nil {
		l.stat.Worker = l.process.PID()
		err = srv.addLease(s, l)
	}
	if err != nil {
		srv.endLease(s)
		return nil, err
	}
	s.log.Info("vulkan application", "name", l.stat.Application, "pid", l.stat.PID, "peer", s.raw.RemoteAddr(), "worker", l.stat.Worker)
	return l, nil
}

// addLease lets others know of a lease, unless the server is stopping: then the
// session may have been told already, over its connection.
func (srv *Server) addLease(s *session, l *lease) error {
	srv.mu.Lock()
	closing := srv.closing
	if !closing {
		srv.leases[s] = l
	}
	srv.mu.Unlock()
	if closing {
		l.end()
		l.wait()
		return &wire.Error{Code: wire.Closed, Message: "the server is stopping"}
	}
	return nil
}

func (srv *Server) endLease(s *session) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	delete(srv.leases, s)
	srv.lent--
}

// lease returns what the session has become, or nil.
func (s *session) lease() *lease {
	s.srv.mu.Lock()
	defer s.srv.mu.Unlock()
	return s.srv.leases[s]
}

// vulkanStats describes the applications, oldest first.
func (srv *Server) vulkanStats() []control.VulkanStat {
	list := []control.VulkanStat{}
	srv.mu.Lock()
	defer srv.mu.Unlock()
	for _, l := range srv.leases {
		l.mu.Lock()
		list = append(list, l.stat)
		l.mu.Unlock()
	}
	slices.SortFunc(list, func(a, b control.VulkanStat) int { return a.Since.Compare(b.Since) })
	return list
}

// printable is what is left of a name that a stranger chose, to be shown on
// terminals.
func printable(name string) string {
	name = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, name)
	for i := range name {
		if i > longestName {
			return name[:i]
		}
	}
	return name
}

// handOver gives nc to the worker and returns when the worker is about to end,
// or ought to be.
func (s *session) handOver(l *lease, nc net.Conn, a control.Vulkan) error {
	cfg := s.srv.vulkan
	start := handover.Start{
		Session: uint64(s.owner), Application: l.stat.Application, PID: l.stat.PID, Device: a.Device,
		Compress: s.compress, IOTimeout: s.srv.ioTimeout, Local: s.direct,
		Memory: cfg.Memory, Objects: cfg.Objects, QueueDepth: cfg.QueueDepth, Deadline: cfg.Deadline,
		HideHostCoherent: cfg.HideHostCoherent, HideImport: cfg.HideImport,
	}
	if _, encrypted := s.raw.(*tlslisten.Conn); encrypted {
		ours, theirs, err := fdpass.Pair()
		if err != nil {
			return err
		}
		defer ours.Close()
		err = l.begin(start, theirs)
		theirs.Close()
		if err != nil {
			return err
		}
		relayed := make(chan struct{})
		go func() {
			defer close(relayed)
			relay(nc, ours, l.end)
		}()
		l.follow()
		l.end()
		<-l.process.Gone()
		// The worker's last words are on their way to the client, if it reads.
		slow := time.AfterFunc(workerGrace, func() { s.raw.Close() })
		<-relayed
		slow.Stop()
		return nil
	}
	socket, ok := s.raw.(interface{ File() (*os.File, error) })
	if !ok {
		return fmt.Errorf("a connection over %s cannot be handed to a worker", nc.LocalAddr().Network())
	}
	f, err := socket.File()
	if err != nil {
		return err
	}
	start.Sums = !s.direct
	err = l.begin(start, f)
	f.Close()
	// From here on the connection is the worker's alone: it ends with it.
	s.conn.Close()
	if err != nil {
		return err
	}
	l.follow()
	return nil
}

// begin sends the worker on its way, unless it has been asked to end.
func (l *lease) begin(start handover.Start, client *os.File) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.patience != nil {
		return errGone
	}
	w, err := handover.Begin(l.parent, start, client)
	l.begun = w
	return err
}

// follow takes in what the worker reports until it ends, or says that it will.
func (l *lease) follow() {
	for {
		st, err := l.begun.Next()
		if err != nil {
			l.log.Debug("vulkan worker ends", "worker", l.stat.Worker, "reason", err)
			return
		}
		if st.Confined != "" {
			level := slog.LevelDebug
			if !st.Full {
				level = slog.LevelWarn
			}
			l.log.Log(context.Background(), level, "vulkan worker ready", "worker", l.stat.Worker, "confined", st.Confined)
		}
		l.mu.Lock()
		l.stat.Memory, l.stat.Objects = st.Memory, st.Objects
		l.stat.Device = cmp.Or(printable(st.Device), l.stat.Device)
		l.mu.Unlock()
	}
}

// end asks the worker to end, and has it end if it takes too long.
func (l *lease) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.patience != nil {
		return
	}
	l.patience = time.AfterFunc(workerGrace, func() {
		l.log.Warn("vulkan worker killed: it did not end", "worker", l.process.PID())
		l.process.Kill()
	})
	if l.begun != nil {
		l.begun.End()
	} else {
		l.parent.Close()
	}
}

// wait waits until a worker that was asked to end has ended.
func (l *lease) wait() {
	<-l.process.Gone()
	l.mu.Lock()
	l.patience.Stop()
	if l.begun != nil {
		l.begun.Close()
	}
	l.mu.Unlock()
	level, state := slog.LevelDebug, l.process.State()
	if state != "exit status 0" {
		level = slog.LevelWarn
	}
	l.log.Log(context.Background(), level, "vulkan worker ended", "worker", l.process.PID(), "state", state, "said", l.process.LastWords())
}
