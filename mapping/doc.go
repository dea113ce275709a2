// SPDX-License-Identifier: Apache-2.0

// Package mapping gives a client its view of a span's bytes. It knows nothing
// of connections: whoever uses it reads, sends and is answered.
//
// A [Direct] is the very same pages, from a descriptor that the daemon passed.
//
// A [Shadow] is a local copy for a daemon that is elsewhere. Its memory comes
// from a [Pool], whose shadows share one memfd and one userfaultfd, and is
// mapped twice: the user stores into one mapping, which is tracked, and the
// package reads and writes through the other, so that filling never looks like
// writing. Beside it a shadow keeps an image: the bytes as the server last had
// them. What the user wrote is what differs from the image, byte for byte, and
// only that is sent ([Shadow.Collect]); what others wrote is what differs from
// the image in the server's answer, and only that is stored ([Shadow.Merge]). So
// writers of different bytes never undo each other, in one page too. A store of
// the value that was there is no write.
//
// The life of a shadow: NewShadow; Fill for each range the server holds; Arm;
// hand out Bytes; then Collect, an Ack or Nack for each Change, Merge, in any
// order and number; Close.
//
// On systems other than Linux shadows live in plain memory and changes are
// found by comparison alone; Direct fails with [errors.ErrUnsupported].
package mapping
