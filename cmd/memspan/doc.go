// SPDX-License-Identifier: Apache-2.0

// Command memspan maps memory that lives elsewhere, and runs the daemon that
// holds it.
//
//	memspan serve                        # the daemon, on a unix socket
//	memspan put model.bin --name weights # a span of the file's bytes
//	memspan get weights | cmp - model.bin
//	memspan ls
//	memspan lock weights -- ./train      # run a command while holding a span's lock
//	memspan doctor                       # what this machine offers
//	memspan demo                         # the whole way to the GPU and back, verified
//
// It exits 0 when all went well, 1 when something failed or did not verify,
// and 2 when it was called wrongly; 'memspan lock' exits as its command does.
// What it was asked for goes to standard output, everything else to standard
// error.
package main
