// SPDX-License-Identifier: Apache-2.0

// Package span keeps spans: it carries out package coherency's plans on the
// tiers of this machine.
//
// A [Store] holds the spans of a daemon, a [Span] the blocks of one. Reading,
// writing, copying and filling may be done by any number of goroutines; what
// they see is serial per block. Direct mappings are shared memory and outside
// that order until they are released.
//
// # Lock order
//
//	Store.naming
//	  block lock (block.go; several: by span id, then block number)
//	    Store.mu
//	      Span.mu
//
// A block lock may be held across input and output and is waited for with a
// context; naming is held across the data directory's commit of a name. The other
// mutexes guard memory only. Whoever makes room on a full tier holds a block
// already: he takes others' only if nobody uses them.
package span
