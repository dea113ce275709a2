// SPDX-License-Identifier: Apache-2.0

// Command grpcpeer sends a file by gRPC, or gets it: what pulling is measured against. It is
// a module of its own, so that memspan does not depend on gRPC.
//
//	grpcpeer serve FILE [DIR]     prints its address, and serves until standard input ends
//	grpcpeer get ADDRESS FILE [DIR]
//
// With DIR, where a certificate and its key are (server.crt, server.key), it is by TLS 1.3.
//
// The server streams messages of 1 MiB, which are bytes as they are: no message is
// encoded, and none is copied more often than gRPC does.
package main
