// SPDX-License-Identifier: Apache-2.0

// Package codec carries the arguments of Vulkan calls from an application's
// memory to a worker's, and what the driver stored there back, by walking the
// tables of package registry. There is no code per command; by hand is only
// what tables cannot say: when a pointer means anything (conditions.go) and
// data whose layout another object describes (template.go).
//
// # Calls
//
// A call is its parameters in order, little-endian, without padding:
//
//   - a plain value in its natural size; a handle as its id, 8 bytes;
//   - a pointer as a byte, 0 for null, else 1 and what it points to;
//   - nothing for what is local to a process.
//
// How many elements an array has is never said twice: both ends take it from
// the parameter or member that C takes it from. Arrays of plain bytes, of ids
// and of structures without members of interest are one copy. A string is its
// length (4 bytes) and its bytes; in an array of strings, all ones is a null.
// An array with a stride is preceded by its bytes' number (4 bytes), as the
// stride comes after it.
//
// A structure is its bytes as in memory, with ids for handles, 0 or 1 for
// pointers and 0 for what is local, and then, in order, what its pointers point
// to. A pNext chain is its structures, each with 0 for its own pNext, ended by
// 0xFFFFFFFF; structures that the tables do not have are left out of it.
//
// For a parameter that receives new handles the client's ids travel. For a
// structure that the driver fills only its shape does, so that the bytes of a
// query do not depend on what the application's memory held before: nothing for
// a structure without members of interest; else for pNext the presence byte and
// the chain, each structure's sType before its shape, and for pointers the
// presence byte, the count that the structure says, and the shape of what it
// points to. Plain bytes that are output only do not travel at all.
//
// # Replies
//
// A reply is what the command returned, 4 bytes for a VkResult and 8 for other
// values; one byte for each handle that the command creates, 0 if it did not;
// and, unless the result is an error, the outputs in order, those that count
// others last. An array whose length the driver says is preceded by the number
// of elements (4 bytes). Of a structure come its chain (sType and content of
// each), what its members hold or point to, then its plain bytes; sType, pNext
// and other pointers are never sent back nor touched.
package codec
