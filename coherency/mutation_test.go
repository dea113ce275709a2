// SPDX-License-Identifier: Apache-2.0

package coherency

import (
	"math"
	"testing"
)

var guardNames = [guardCount]string{
	oneWriter: "oneWriter", writeCurrent: "writeCurrent", writeExpected: "writeExpected",
	writeUndisturbed: "writeUndisturbed", writeHides: "writeHides", writeVoids: "writeVoids",
	commitBegun: "commitBegun", newVersion: "newVersion", damageHides: "damageHides",
	sourceCurrent: "sourceCurrent", zerosOnly: "zerosOnly", oneArrival: "oneArrival",
	notIntoWriter: "notIntoWriter", arrivalHides: "arrivalHides", arrivalVoids: "arrivalVoids",
	rightTicket: "rightTicket", voidIgnored: "voidIgnored", failureIgnored: "failureIgnored",
	versionCopied: "versionCopied", voidReplaces: "voidReplaces", keepLast: "keepLast",
	keepSurvivor: "keepSurvivor", keepSource: "keepSource", keepArrival: "keepArrival",
	keepWhileWriting: "keepWhileWriting", keepWritten: "keepWritten", keepPinned: "keepPinned",
	dutyMoves: "dutyMoves", deathVoidsArrivals: "deathVoidsArrivals", deathVoidsSources: "deathVoidsSources",
	deathEndsWrite: "deathEndsWrite", adoptKnown: "adoptKnown", adoptUndisturbed: "adoptUndisturbed",
	adoptUnwritten: "adoptUnwritten", acceptLost: "acceptLost",
}

// TestMutations takes one guard away at a time: the search must then find a
// violation, or the guard guards nothing, or the search is blind.
func TestMutations(t *testing.T) {
	for g := noGuard + 1; g < guardCount; g++ {
		if guardNames[g] == "" {
			t.Fatalf("guard %d has no name", g)
		}
		t.Run(guardNames[g], func(t *testing.T) {
			for _, machine := range machines[:2] {
				states, _, err := search(machine.c, g, math.MaxInt)
				if err != nil {
					t.Logf("%s, after %d states: %v", machine.name, states, err)
					return
				}
			}
			t.Error("without this guard the search finds no violation")
		})
	}
}
