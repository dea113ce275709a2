// SPDX-License-Identifier: Apache-2.0

// Command pipeline hands 64 MiB through three processes, and no byte of them is copied.
//
//	go run ./examples/pipeline
//
// The stages are joined as in a shell, by pipes on which tickets go from one to the
// next. Stage 1 makes data and exposes it. Stage 2 maps it, computes something of each
// chunk, and passes on the same surface with one of its results. Stage 3 maps both and
// verifies them. What keeps the surfaces is a server that runs in the first process;
// `memspan serve` does the same.
package main
