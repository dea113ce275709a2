// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/sharedbuf"
)

// Codes of failures that are none of the daemon's.
const (
	codeUsage  = "usage"  // the command line cannot be meant
	codeFailed = "failed" // anything on this side, like a file that cannot be read
)

// A failure is why a command failed, as --json has it.
type failure struct {
	Code    string `json:"code"` // that of a memspan.Error or sharedbuf.Error, or one of those above
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"` // what can be done about it

	text string // for people
}

// describe tells what a command's error is.
func describe(err error, interrupted bool) failure {
	if interrupted && errors.Is(err, context.Canceled) {
		return failure{Code: memspan.ErrCanceled.String(), Message: "interrupted", text: "interrupted"}
	}
	f := failure{Code: codeFailed, Message: err.Error(), Hint: hint(err), text: err.Error()}
	var code memspan.Code
	var usage *usageError
	var shared sharedbuf.Code
	switch {
	case errors.As(err, &usage):
		f.Code = codeUsage
	case errors.As(err, &shared):
		f.Code = string(shared)
		f.Message = strings.Replace(f.Message, f.Code+": ", "", 1)
	case errors.As(err, &code):
		f.Code = code.String()
		f.Message = strings.Replace(f.Message, f.Code+": ", "", 1) // it need not be said twice
	}
	return f
}

// wantsJSON reports whether the command line asked for JSON. One that could not
// be parsed may have done so behind what is wrong with it.
func wantsJSON(root *cobra.Command, args []string) bool {
	if on, err := root.PersistentFlags().GetBool("json"); err == nil && on {
		return true
	}
	if i := slices.Index(args, "--"); i >= 0 {
		args = args[:i]
	}
	return slices.Contains(args, "--json")
}

// printFailure writes a failure as one line of JSON.
func printFailure(w io.Writer, f failure) {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	// There is nobody to tell that standard error is gone.
	_ = enc.Encode(struct {
		Error failure `json:"error"`
	}{f})
}
