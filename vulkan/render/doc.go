// SPDX-License-Identifier: Apache-2.0

// Package render executes one application's Vulkan calls on this machine's
// driver. It reads them from a stream as the client's driver encoded them, in
// order, and answers those that ask; what the device does later, completed
// submissions, changed memory, it tells unasked.
//
// A goroutine reads the stream and executes calls. It never waits for the
// device: each queue has a goroutine that waits for submissions, and calls that
// may take long run aside, each on its own.
//
// Handles are named by the client. A call that names a handle which it does not
// own, or one of another type, is not executed. Beyond that the driver is asked
// what the application asked: a hostile one can at worst crash its own worker,
// a confined process that holds nothing of anybody else's.
//
// Lock order: queue.mu, then device.mu, then the stream's writer. The table of
// objects has no lock: it is the stream's goroutine's.
package render
