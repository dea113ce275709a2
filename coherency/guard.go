// SPDX-License-Identifier: Apache-2.0

package coherency

// A guard is one of the rules that keep the invariants. Each is asked for by
// name where it is applied, so that a test can take any one away and show that
// the exhaustive search then finds what it was there for.
type guard uint8

const (
	noGuard guard = iota // takes nothing away

	oneWriter          // BeginWrite: one agent writes a block at a time
	writeCurrent       // BeginWrite: a part of a block is written onto the current version
	writeExpected      // BeginWrite: onto the version that the writer expects
	writeUndisturbed   // BeginWrite: not where a copy is arriving
	writeHides         // BeginWrite: bytes being changed are no version
	writeVoids         // BeginWrite: copies being read from them do not count
	commitBegun        // Commit, Abort: by the agent that began the write
	newVersion         // Commit, Adopt, Accept: the version moves on
	damageHides        // Abort: damaged bytes are no version
	sourceCurrent      // Acquire: from an agent that holds the current version
	zerosOnly          // Acquire: zeros stand for a version that is zeros
	oneArrival         // Acquire, Evict: one copy into an agent at a time
	notIntoWriter      // Acquire: not into bytes being written
	arrivalHides       // Acquire, Evict: bytes being filled are no version
	arrivalVoids       // Acquire, Evict: copies being read from them do not count
	rightTicket        // Complete: of the copy that is under way
	voidIgnored        // Complete: of a copy that still counts
	failureIgnored     // Complete: of a copy that succeeded
	versionCopied      // Complete: the agent holds what was copied, not what is current by now
	voidReplaces       // Complete: what a Disk agent held is gone once any copy arrived
	keepLast           // Evict: not the only copy
	keepSurvivor       // Evict: not the newest survivor of a loss
	keepSource         // Evict, Discard: not what a copy is read from
	keepArrival        // Evict, Discard: not what a copy is written to
	keepWhileWriting   // Evict: not while the version may be needed by an abort
	keepWritten        // Discard: not what is being written
	keepPinned         // Evict, Discard: not what is pinned
	dutyMoves          // the debt of an agent that leaves is another's
	deathVoidsArrivals // Lose: copies into the dead agent do not count
	deathVoidsSources  // Lose: nor those from it
	deathEndsWrite     // Lose: nor what it was writing
	adoptKnown         // Adopt: bytes that are a version
	adoptUndisturbed   // Adopt, Accept: not where a copy is arriving
	adoptUnwritten     // Adopt, Accept: not while another write is under way
	acceptLost         // Accept: only what is lost

	guardCount = iota
)

// guard reports whether g is in force.
func (m *Manager) guard(g guard) bool { return m.broken != g }
