// SPDX-License-Identifier: Apache-2.0

package sharedbuf

// ErrDeviceLost: the device that worked on the buffer, or held what was asked for,
// is lost. The buffer stays, with some blocks transformed and others not.
const ErrDeviceLost Code = "device-lost"

// IngestArguments say what Ingest makes of a buffer.
type IngestArguments struct {
	Name string `json:"name"` // of the span
	// Tier is where the span lives and Home where its bytes belong: "vram",
	// "host" or "disk". Empty: host, and where it lives.
	Tier string `json:"tier,omitempty"`
	Home string `json:"home,omitempty"`
	// Policy is "write-back", "write-through" or "write-all"; empty: write-back.
	Policy string `json:"policy,omitempty"`
	// Replace takes the name from a span that has it.
	Replace bool `json:"replace,omitempty"`
	// Move gives the buffer's memory to the span, where it can be: a buffer without
	// a name on one machine, and a span in RAM that is not durable first. No byte
	// is copied then. The buffer is to be freed afterwards, and not put back into
	// a pool: what is stored to it is seen by whoever reads the span.
	Move bool `json:"move,omitempty"`
}

// Ingest returns the step that makes a span of the buffer's bytes, on a host that
// has spans: memspan serve. The span is found by its name once it is whole; if
// that fails nothing is left of it. It fails with ErrExists if a span has the
// name. The result's Value is an Ingested.
func Ingest(a IngestArguments) Step { return Operation("ingest", a) }

// Ingested says what became of a buffer.
type Ingested struct {
	Span   string `json:"span"`   // its id
	Bytes  int64  `json:"bytes"`  // of the span
	Copied int64  `json:"copied"` // of them, those that were copied from the buffer: all or none
}

// ExportArguments say what Export copies.
type ExportArguments struct {
	Name string `json:"name"` // of a span, or its id
}

// Export returns the step that copies a span's bytes to the buffer, which must
// have its size: ErrSize otherwise, ErrNotFound if there is no such span. Each
// block of 1 MiB is of one version.
func Export(name string) Step { return Operation("export", ExportArguments{name}) }

// MaxTransformPush is how many words a kernel can be given.
const MaxTransformPush = 28

// TransformArguments say what Transform does. Either Kernel or SPIRV is given.
type TransformArguments struct {
	Kernel string `json:"kernel,omitempty"` // the name of one that the host has
	// SPIRV is a kernel's code, as bytes. With all else of a request, and in
	// base64, it has to fit MaxRequest: 47 KiB at most do.
	SPIRV []byte `json:"spirv,omitempty"`
	// Push are the kernel's own push constants, which follow the host's 16 bytes:
	// at most MaxTransformPush.
	Push []U32 `json:"push,omitempty"`
}

// Transform returns the step that has a GPU run a compute kernel on the buffer's
// bytes, block by block: see docs/shared-buffers.md for what a kernel is given.
// It needs a host with a GPU, or with Vulkan's software driver: memspan serve.
func Transform(a TransformArguments) Step { return Operation("transform", a) }
