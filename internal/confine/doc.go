// SPDX-License-Identifier: Apache-2.0

// Package confine starts worker processes, which run GPU drivers, and takes
// from them what a driver does not need.
//
// A worker may read the system's own directories and use GPU devices and
// temporary files. It reaches no home directory, no network and no other
// process: [Confine] applies no_new_privs, Landlock and a seccomp filter. What
// a kernel does not have is left out and reported in [State].
package confine
