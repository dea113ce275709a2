// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/memspan/memspan/sharedbuf"
)

func newBufferRun(opts *options) *cobra.Command {
	var dir string
	var length size
	cmd := &cobra.Command{
		Use:   "run {FILE | --size SIZE} OPERATION [NAME=VALUE...] [then OPERATION ...]",
		Short: "Have a host carry out operations on a file or a new buffer",
		Long: `Run has a host carry out operations, one after the other, on a file that is in
the directory they share, or on a new buffer of zeros, and prints what they found.

  process                          reads every byte
  checksum                         finds the CRC-32C
  verify pattern=NUMBER            fails unless the bytes are this, again and again
  fill pattern=NUMBER              makes them so
  transform spirv=@FILE            runs a compute kernel on them, compiled to SPIR-V;
      [push=NUMBER,...]            kernel=NAME is one that the host has
  ingest name=SPAN [tier=] [home=] makes a span of them
      [policy=] [replace=true]       (move=true: of its memory, without a copy, if
      [move=true]                    it has no name)
  export name=SPAN                 copies a span to them

A host may have others: their VALUEs are JSON, or else text; @FILE is what is in
FILE. The last three need 'memspan serve --shared-dir'.`,
		Example: `  memspan buffer run --size 64MiB fill pattern=0x12345678 then checksum
  memspan buffer run /dev/shm/buffers/table ingest name=table tier=vram
  memspan buffer run /dev/shm/buffers/table transform spirv=@affine.spv push=3,1 then checksum`,
		RunE: func(cmd *cobra.Command, args []string) error {
			file := ""
			if length == 0 && len(args) > 0 {
				file, args = args[0], args[1:]
			}
			if len(args) == 0 {
				return usagef("buffer run takes a file, or --size, and at least one operation")
			}
			chain, err := parseChain(args)
			if err != nil {
				return err
			}
			result, err := bufferRun(cmd.Context(), opts, dir, file, int64(length), chain)
			if err != nil {
				return err
			}
			if opts.json {
				return printJSON(cmd.OutOrStdout(), result)
			}
			return printSteps(cmd.OutOrStdout(), result)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "shared `directory` that --size makes a file in, as this side names it (default: none, memory without a name)")
	cmd.Flags().Var(&length, "size", "bytes of a new buffer, which goes afterwards")
	return cmd
}

func bufferRun(ctx context.Context, opts *options, dir, file string, length int64, chain []sharedbuf.Step) (_ *sharedbuf.Result, err error) {
	c, err := opts.dialHost(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }() // which frees the buffer
	if file != "" {
		return c.ProcessFile(ctx, file, chain...)
	}
	b, err := c.Alloc(ctx, length)
	if err != nil {
		return nil, err
	}
	return b.Process(ctx, chain...)
}

// printSteps prints a line for each operation.
func printSteps(w io.Writer, result *sharedbuf.Result) error {
	steps := result.Steps
	if len(steps) == 0 {
		steps = []sharedbuf.StepResult{{Operation: result.Operation, Bytes: result.Bytes, Value: result.Value}}
	}
	t := newTable(w, "OPERATION", "BYTES", "VALUE")
	for _, s := range steps {
		t.row(s.Operation, strconv.FormatInt(s.Bytes, 10), string(s.Value))
	}
	return t.flush()
}

// parseChain reads operations with their arguments, with "then" between them.
func parseChain(words []string) ([]sharedbuf.Step, error) {
	var chain []sharedbuf.Step
	for len(words) > 0 {
		end := slices.Index(words, "then")
		step, rest := words, []string(nil)
		if end >= 0 {
			if step, rest = words[:end], words[end+1:]; len(rest) == 0 {
				return nil, usagef("an operation comes after then")
			}
		}
		if len(step) == 0 || strings.Contains(step[0], "=") {
			return nil, usagef("an operation comes before %q", words[0])
		}
		var arguments map[string]any
		for _, word := range step[1:] {
			name, text, ok := strings.Cut(word, "=")
			if !ok || name == "" {
				return nil, usagef("%s %s: want NAME=VALUE, or then and another operation", step[0], word)
			}
			value, err := parseArgument(name, text)
			if err != nil {
				return nil, err
			}
			if arguments == nil {
				arguments = make(map[string]any)
			}
			arguments[name] = value
		}
		var given any // nil: none
		if arguments != nil {
			given = arguments
		}
		chain = append(chain, sharedbuf.Operation(step[0], given))
		words = rest
	}
	return chain, nil
}

// parseArgument reads an argument's value, by the kind that those of its name are
// of.
func parseArgument(name, text string) (any, error) {
	if path, ok := strings.CutPrefix(text, "@"); ok {
		return os.ReadFile(path) // base64 in JSON
	}
	switch name {
	case "name", "tier", "home", "policy", "kernel":
		return text, nil
	case "pattern":
		return parseU32(name, text)
	case "push":
		var list []uint32
		for part := range strings.SplitSeq(text, ",") {
			n, err := parseU32(name, part)
			if err != nil {
				return nil, err
			}
			list = append(list, n)
		}
		return list, nil
	}
	if json.Valid([]byte(text)) {
		return json.RawMessage(text), nil
	}
	return text, nil
}

func parseU32(name, text string) (uint32, error) {
	n, err := strconv.ParseInt(text, 0, 64)
	if err != nil || n < -1<<31 || n > 1<<32-1 {
		return 0, usagef("%s=%s: want a number of 32 bits, like 7 or 0x12345678", name, text)
	}
	return uint32(n), nil
}
