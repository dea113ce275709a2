// SPDX-License-Identifier: Apache-2.0

package sharedbuf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// The parts of the channel's vocabulary that both sides spell.
const (
	APIHello       = "hello"
	APIEcho        = "echo"
	APIBufferTest  = "buffer_test"
	APIPerformance = "performance"
	APIShared      = "shared_buffer"
	APIJob         = "shared_buffer_job"
	APICopy        = "shared_buffer_copy"
	APICancel      = "cancel"

	// MemfdPrefix begins the file_path of a buffer without a name. The decimal
	// id follows; the descriptor travels with the request.
	MemfdPrefix = "memfd:"

	// ChannelPrefix begins the file_path of a buffer whose bytes are sent. The
	// decimal id follows.
	ChannelPrefix = "channel:"

	// NamePrefix begins the names of buffers: the id, _ and the process id follow.
	NamePrefix = "winapi_shared_buffer_"

	statusSuccess   = "success"
	statusError     = "error"
	statusProcessed = "processed"
)

// A Secret is text that must not be shown: formatted and logged it is "(secret)".
type Secret string

// Format implements fmt.Formatter.
func (Secret) Format(s fmt.State, _ rune) { io.WriteString(s, "(secret)") }

// LogValue implements slog.LogValuer.
func (Secret) LogValue() slog.Value { return slog.StringValue("(secret)") }

// A U32 is a 32-bit number. C programs that hold it in an int write it negative:
// both forms are read.
type U32 uint32

// UnmarshalJSON implements json.Unmarshaler.
func (u *U32) UnmarshalJSON(text []byte) error {
	var n int64
	if err := json.Unmarshal(text, &n); err != nil {
		return err
	}
	if n < -1<<31 || n > 1<<32-1 {
		return fmt.Errorf("%d does not fit 32 bits", n)
	}
	*u = U32(n)
	return nil
}

// A Step is one operation of the host on a buffer.
type Step struct {
	Operation string          `json:"operation"`
	Arguments json.RawMessage `json:"arguments,omitempty"` // what the operation takes, if anything
}

// A Request is what a client asks. All fields but API depend on it.
type Request struct {
	API     string `json:"api"`
	ID      int64  `json:"request_id,omitempty"` // 0: none; answered in order
	Version int    `json:"version,omitempty"`    // 0 or 1

	Token Secret          `json:"token,omitempty"` // hello: what proves who the client is
	Input json.RawMessage `json:"input,omitempty"` // echo: a string

	// Operation is a string, but a number in buffer_test.
	Operation  json.RawMessage `json:"operation,omitempty"`
	Arguments  json.RawMessage `json:"arguments,omitempty"`
	Then       []Step          `json:"then,omitempty"`        // what follows Operation in a chain
	Path       string          `json:"file_path,omitempty"`   // as the guest names it
	Size       int64           `json:"buffer_size,omitempty"` // bytes
	BufferID   U32             `json:"buffer_id,omitempty"`
	Generation uint64          `json:"generation,omitempty"` // of the hand-off; 0: not said
	Background bool            `json:"background,omitempty"` // answer at once, with a job

	Blocks bool `json:"blocks,omitempty"` // blocks of the buffer follow the request

	// Key opens a buffer whose bytes are sealed: 32 bytes in base64.
	Key Secret `json:"key,omitempty"`
	// Permissions are those of a buffer without a file; see ParsePermissions.
	Permissions json.RawMessage `json:"permissions,omitempty"`

	Job    int64 `json:"job,omitempty"`    // shared_buffer_job: which
	Cancel int64 `json:"cancel,omitempty"` // cancel: the request_id to give up

	Pattern     U32   `json:"test_pattern,omitempty"`    // buffer_test
	PayloadSize int64 `json:"payload_size,omitempty"`    // buffer_test: bytes
	Transfer    *bool `json:"socket_transfer,omitempty"` // buffer_test: nil means true
	TestType    int   `json:"test_type,omitempty"`       // performance: 1 latency, 2 throughput
	Iterations  int64 `json:"iterations,omitempty"`      // performance
	TargetBytes int64 `json:"target_bytes,omitempty"`    // performance
}

// ParseRequest decodes a request's JSON. Unknown fields are ignored. The error
// is an *Error with ErrInvalid, or ErrUnsupported for another version; with it
// the request is nil or what could be understood of it: its API, its ID and whether
// blocks may follow.
func ParseRequest(body []byte) (*Request, error) {
	r := new(Request)
	if err := json.Unmarshal(body, r); err != nil {
		r, known := headOf(body)
		if kind := (*json.UnmarshalTypeError)(nil); errors.As(err, &kind) {
			what := kind.Field
			if !known {
				what = "it"
			}
			err = fmt.Errorf("%s is a JSON %s", what, kind.Value)
		}
		return r, &Error{Code: ErrInvalid, Message: "the request is not the JSON that was expected", Err: err}
	}
	switch {
	case r.API == "":
		return r, invalidf("the request names no api")
	case r.Version != 0 && r.Version != 1:
		return r, &Error{Code: ErrUnsupported, Message: fmt.Sprintf("version %d of the channel; this side speaks version 1", r.Version)}
	case r.Size < 0 || r.PayloadSize < 0 || r.Iterations < 0 || r.TargetBytes < 0:
		return r, invalidf("a size or count is negative")
	}
	return r, nil
}

// headOf returns what a request says of itself that is JSON, and not what is expected.
func headOf(body []byte) (r *Request, known bool) {
	var fields map[string]json.RawMessage
	if json.Unmarshal(body, &fields) != nil || fields == nil {
		return nil, false
	}
	r = new(Request)
	// What is no string, or no number, stays unknown.
	_ = json.Unmarshal(fields["api"], &r.API)
	_ = json.Unmarshal(fields["request_id"], &r.ID)
	_, r.Blocks = fields["blocks"]
	return r, true
}

// OperationName returns the operation as a string.
func (r *Request) OperationName() (string, error) {
	var name string
	if err := json.Unmarshal(r.Operation, &name); err != nil || name == "" {
		return "", invalidf("the request names no operation")
	}
	return name, nil
}

// OperationNumber returns the operation as a number.
func (r *Request) OperationNumber() (int, error) {
	var n int
	if err := json.Unmarshal(r.Operation, &n); err != nil {
		return 0, invalidf("the operation is no number")
	}
	return n, nil
}

// Chain returns all operations that the request asks for, at least one.
func (r *Request) Chain() ([]Step, error) {
	name, err := r.OperationName()
	if err != nil {
		return nil, err
	}
	return append([]Step{{name, r.Arguments}}, r.Then...), nil
}

// A Reply answers a request. Exactly one of Result and Error is set.
type Reply struct {
	ID     int64           `json:"request_id"` // the request's; 0 if it had none
	Status string          `json:"status"`     // success or error
	Result json.RawMessage `json:"result,omitempty"`
	Error  string          `json:"error,omitempty"`
	Code   Code            `json:"code,omitempty"`   // the kind of the error
	Blocks bool            `json:"blocks,omitempty"` // blocks of the buffer follow the reply
	Sealed uint64          `json:"sealed,omitempty"` // the turn in which the host sealed what it changed; 0: it changed nothing
}

// AppendReply appends the frame that answers the request id with result, or
// with err if that is not nil. A result that is too long is answered with
// ErrLimit instead. An error's text is cut to fit.
func AppendReply(dst []byte, id int64, result any, err error) []byte {
	return appendReply(dst, Reply{ID: id}, result, err)
}

// AppendReplyBeforeBlocks is AppendReply for a reply that blocks of the buffer
// follow.
func AppendReplyBeforeBlocks(dst []byte, id int64, result any, err error) []byte {
	return appendReply(dst, Reply{ID: id, Blocks: true}, result, err)
}

// AppendReplySealed is AppendReply for a reply about a buffer of which something
// was sealed in a turn.
func AppendReplySealed(dst []byte, id int64, result any, err error, turn uint64) []byte {
	return appendReply(dst, Reply{ID: id, Sealed: turn}, result, err)
}

func appendReply(dst []byte, reply Reply, result any, err error) []byte {
	if err == nil {
		frame, ferr := appendResult(dst, reply, result)
		if ferr == nil {
			return frame
		}
		err = ferr
	}
	const maxText = 4096 // each byte takes at most six in JSON
	text := strings.ToValidUTF8(err.Error(), "?")
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "..."
	}
	reply.Status, reply.Error, reply.Code = statusError, text, codeOf(err)
	frame, merr := AppendFrame(dst, reply, MaxResponse)
	if merr != nil {
		panic(merr) // strings and numbers, bounded above
	}
	return frame
}

func appendResult(dst []byte, reply Reply, result any) (frame []byte, err error) {
	reply.Status = statusSuccess
	if result == nil {
		result = json.RawMessage("null") // said all the same
	}
	return AppendFrame(dst, struct {
		Reply
		Result any `json:"result"` // in place of the reply's
	}{reply, result}, MaxResponse)
}

// ParseReply decodes a reply's JSON. The error says that the host broke the
// protocol; what the host refuses is in the reply.
func ParseReply(body []byte) (*Reply, error) {
	r := new(Reply)
	if err := json.Unmarshal(body, r); err != nil {
		return nil, &Error{Code: ErrInvalid, Message: "the reply is not the JSON that was expected", Err: err}
	}
	if r.Status != statusSuccess && r.Status != statusError {
		return nil, invalidf("the reply's status is %q", r.Status)
	}
	return r, nil
}

// Failure returns what the host refused with, or nil.
func (r *Reply) Failure() *Error {
	if r.Status == statusSuccess {
		return nil
	}
	e := &Error{Code: r.Code, Message: r.Error}
	if e.Code == "" { // an original host
		e.Code = ErrFailed
	}
	// The text was for people: what it was about and its code are said again.
	if _, why, ok := strings.Cut(e.Message, string(e.Code)+": "); ok {
		e.Message = why
	}
	return e
}

// A Result says what the host has done.
type Result struct {
	Operation string          `json:"operation"` // the first of the chain
	BufferID  uint32          `json:"buffer_id"`
	Bytes     int64           `json:"bytes_processed"` // read or written by the operations, together
	Status    string          `json:"status"`          // "processed"; "running" for a job
	Value     json.RawMessage `json:"value,omitempty"` // what the last operation found, if anything
	Steps     []StepResult    `json:"steps,omitempty"` // one for each operation of a chain
	Job       int64           `json:"job,omitempty"`   // the background job that was begun

	epoch uint64 // which of the host's copies it is about, if the buffer's bytes are sent
}

// A StepResult is what one operation of a chain has done.
type StepResult struct {
	Operation string          `json:"operation"`
	Bytes     int64           `json:"bytes_processed"`
	Value     json.RawMessage `json:"value,omitempty"`
}

// JobStatus says how far a background job is.
type JobStatus struct {
	Job   int64 `json:"job"`
	Done  bool  `json:"done"`            // its result is there
	Bytes int64 `json:"bytes_processed"` // so far
	Total int64 `json:"bytes_total"`     // at the end, if each operation passes over the buffer once
}

// marshal is json.Marshal without the escapes that are meant for web pages: an
// answer has to fit.
func marshal(v any) (json.RawMessage, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
