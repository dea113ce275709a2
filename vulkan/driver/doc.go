// SPDX-License-Identifier: Apache-2.0

// Package driver is the client's half of memspan's Vulkan driver: what stands
// behind the entry points that an application calls. It names the objects,
// sends what is to be done to a worker, and answers locally what it can.
//
// # Calls
//
// [Driver.Call] takes every command, on any thread. What it does with one is
// said by a table (class.go) made from the registry's: a command is answered
// here, recorded in its command buffer, sent, or sent and its answer waited
// for. The answer to an immutable query is kept.
//
// # Reading
//
// No thread reads the connection all the time. An application's thread that
// waits takes the lead: it waits for the socket in a system call of its own,
// which the kernel wakes directly, and applies what comes; others who wait
// park until the leader has what they wait for, and one of them takes the lead
// when it leaves. Only when nobody waits does a goroutine of the connection
// read. Where the socket cannot be waited for (TLS) that goroutine reads
// always.
//
// # Locks
//
// Who reads holds link.readMu, and must not wait for anybody who sends or waits
// for an answer. Besides it he takes only locks that are given up soon:
//
//	link.mu              who waits and for which reply
//	mapping.Shadow's     while bytes are copied
//
// The others are never taken by him. Two of them are held while a question that
// is asked once is answered (instanceState.mu, deviceMemory.mu), one while a
// message is sent (deviceState.mu, for a queue's first handle). objects.mu and
// the caches' are leaves. The stream's own lock is held from Begin to End.
//
// Looking up an object takes no lock.
package driver
