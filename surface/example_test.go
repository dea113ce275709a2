// SPDX-License-Identifier: Apache-2.0

package surface_test

import (
	"context"
	"fmt"
	"log"

	"github.com/memspan/memspan/surface"
)

// A surface is exposed, its ticket narrowed, and what is left of it pulled.
func Example() {
	ctx := context.Background()
	store := surface.NewStore(surface.Config{})
	defer store.Close()
	e, err := store.Create(ctx, surface.Spec{Name: "greetings", Size: -1, Chunk: surface.MinChunk})
	if err != nil {
		log.Fatal(err)
	}
	if err := e.Append(ctx, make([]byte, surface.MinChunk)); err != nil {
		log.Fatal(err)
	}
	if err := e.Append(ctx, []byte("hello, puller")); err != nil {
		log.Fatal(err)
	}
	manifest, err := e.Seal(ctx)
	if err != nil {
		log.Fatal(err)
	}

	// Whoever has a ticket can narrow it, and asks nobody.
	ticket, err := e.Ticket().Derive(surface.Range{Offset: surface.MinChunk, Length: 13})
	if err != nil {
		log.Fatal(err)
	}

	// The server's nonce, and what binds a proof to the connection.
	var nonce, binding [32]byte
	opening, err := store.Open(surface.Request{
		Who: "puller", ID: ticket.ID, Caveats: ticket.EncodedCaveats(),
		Proof: ticket.Proof(nonce, binding), Nonce: nonce, Binding: binding,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer opening.Close()
	off, n := manifest.StoredRange(1)
	err = opening.ReadStored(off, n, func(stored []byte) error {
		_, err := fmt.Printf("%s, verified: %v\n", stored, surface.Sum(stored) == manifest.Digests[1])
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
	err = opening.ReadStored(0, 1, func([]byte) error { return nil })
	fmt.Println("the first chunk is not this ticket's:", err != nil)
	// Output:
	// hello, puller, verified: true
	// the first chunk is not this ticket's: true
}
