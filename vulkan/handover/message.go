// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/memspan/memspan/internal/fdpass"
)

// WorkerVariable marks the processes of workers in their environment: a Vulkan
// driver that would dial a daemon must not do so in there. Its value is
// WorkerValue in those that this package is about.
const (
	WorkerVariable = "MEMSPAN_WORKER"
	WorkerValue    = "vulkan"
)

// CacheVariable names, in a worker's environment, the directory where its
// driver may keep compiled shaders; without it the driver keeps none. It is no
// part of Start because it must be known before the process is confined.
const CacheVariable = "MEMSPAN_SHADER_CACHE"

// Start is what a worker is told about the application that it works for. The
// zero value of a limit is no limit.
type Start struct {
	Session     uint64 `json:"session"`     // of the daemon, for logs
	Application string `json:"application"` // its name, for people
	PID         int    `json:"pid"`         // on its own machine
	Device      string `json:"device"`      // offer this GPU only: its index, the beginning of its UUID or part of its name

	// How frames are written on the connection: wire.Config.
	Sums      bool          `json:"sums"`
	Compress  bool          `json:"compress"`
	IOTimeout time.Duration `json:"io_timeout"`
	// Local: the connection is a unix socket whose other end the application
	// holds, so that files can be passed.
	Local bool `json:"local"`

	Memory     int64         `json:"memory"`      // bytes of device memory
	Objects    int           `json:"objects"`     // Vulkan handles
	QueueDepth int           `json:"queue_depth"` // submissions under way
	Deadline   time.Duration `json:"deadline"`    // of one submission at the head of its queue

	// Properties of memory types to hide from the application, and means not
	// to use, so that tests take the paths of drivers that lack them.
	HideHostCoherent bool `json:"hide_host_coherent"`
	HideImport       bool `json:"hide_import"`
}

// Status is what a worker reports of itself.
type Status struct {
	Confined string `json:"confined,omitempty"` // by what
	Full     bool   `json:"full,omitempty"`     // by everything there is
	Device   string `json:"device,omitempty"`   // the name of the GPU in use, once there is one
	Memory   int64  `json:"memory"`             // bytes of device memory held
	Objects  int    `json:"objects"`            // Vulkan handles held
}

// longest is how long a message may be, in bytes.
const longest = 64 << 10

// send writes a Start as {u32 length, JSON}, with the connection attached.
func send(conn *net.UnixConn, s Start, client *os.File) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if len(text) > longest {
		return fmt.Errorf("handover: a message of %d bytes", len(text))
	}
	message := binary.LittleEndian.AppendUint32(nil, uint32(len(text)))
	return fdpass.Send(conn, append(message, text...), client)
}
