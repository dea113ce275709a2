// SPDX-License-Identifier: Apache-2.0

// Package bench measures memspan against bare sockets and against itself, as
// ratios of interleaved runs: `make bench`. Servers and baselines run in
// processes of their own. docs/benchmarks.md has the results.
package bench
