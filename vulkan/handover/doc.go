// SPDX-License-Identifier: Apache-2.0

// Package handover is what a daemon and a Vulkan worker say to each other. The
// daemon starts the worker process, sends it one [Start] with the application's
// connection attached, and has no part in what goes over that connection. From
// then on their own socket carries only the worker's [Status], and its end: the
// daemon ends its half to have the worker end, the worker's half ends with its
// work.
package handover
