// SPDX-License-Identifier: Apache-2.0

package coherency_test

import (
	"fmt"
	"log"

	"github.com/memspan/memspan/coherency"
)

// A block whose home is RAM is written on the device and brought home. The
// Manager only plans: the program moves the bytes and reports what became of
// it.
func Example() {
	const (
		gpu = coherency.Agent(iota)
		ram
	)
	m, err := coherency.NewManager(coherency.Config{
		Agents: []coherency.AgentInfo{gpu: {Tier: coherency.VRAM}, ram: {Tier: coherency.Host}},
		Home:   ram,
		Policy: coherency.WriteThrough,
		Blocks: 1,
		Zeroed: coherency.AgentsOf(ram),
	})
	if err != nil {
		log.Fatal(err)
	}

	// carry carries a planned copy out.
	carry := func(c coherency.Copy) {
		if c.Src == coherency.NoAgent {
			fmt.Printf("fill agent %d with zeros\n", c.Dst)
		} else {
			fmt.Printf("copy version %d from agent %d to agent %d\n", c.Version, c.Src, c.Dst)
		}
		if _, err := m.Complete(c, true); err != nil {
			log.Fatal(err)
		}
	}

	// Write a part of the block: the device needs the rest of it first.
	for {
		c, ready, err := m.BeginWrite(0, gpu, false, coherency.AnyVersion)
		if err != nil {
			log.Fatal(err)
		}
		if ready {
			break
		}
		carry(c)
	}
	fmt.Println("the device writes")
	done, err := m.Commit(0, gpu)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("version %d is %v, a debt: %v\n", done.Version, m.State(0), m.Block(0).Debt)

	// The policy is met when those it names hold the version.
	for a := range done.Push.All() {
		c, hit, err := m.Acquire(0, a)
		if err != nil {
			log.Fatal(err)
		}
		if !hit {
			carry(c)
		}
	}
	fmt.Printf("version %d is %v, a debt: %v\n", m.Version(0), m.State(0), m.Block(0).Debt)

	// Output:
	// fill agent 0 with zeros
	// the device writes
	// version 1 is device-only, a debt: true
	// copy version 1 from agent 0 to agent 1
	// version 1 is synced, a debt: false
}
