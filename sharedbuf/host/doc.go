// SPDX-License-Identifier: Apache-2.0

// Package host is the host's side of shared buffers: it opens and maps, for the
// time of a request, what guests of package
// [github.com/memspan/memspan/sharedbuf] name, and carries out operations on it.
//
//	h, err := host.New(host.Config{Dir: "/srv/shared"})
//	err = h.Serve(ctx, listener)
//
// A host keeps nothing of buffers between requests: one that is restarted goes on
// where the other ended. Operations are a registry; a program adds its own:
//
//	host.Operation{Name: "invert", Access: host.ReadWrite, Run: func(c *host.Call) (any, error) {
//		return nil, c.Each(func(_ int64, chunk []byte) error {
//			for i := range chunk {
//				chunk[i] = ^chunk[i]
//			}
//			return nil
//		})
//	}}
//
// Of guests that share no memory with it a host has copies of buffers, as long as
// they are connected.
//
// Files are opened beneath one directory, over no link, and only those of the
// guest's user or the host's. A guest may cut a file short while it is mapped:
// buffers are touched only where that becomes an error.
package host
