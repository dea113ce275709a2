// SPDX-License-Identifier: Apache-2.0

//go:build unix

package fdpass

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// controlSpace is what MaxFiles descriptors need. A sender that attaches more
// is found out by MSG_CTRUNC.
func controlSpace() int { return unix.CmsgSpace(MaxFiles * 4) }

// parseFiles returns the files of one message's control data. On an error it
// returns those it could make out all the same, for closing: descriptors that
// arrived with truncated control data are open and nobody else knows them.
func parseFiles(oob []byte, flags int) ([]*os.File, error) {
	var files []*os.File
	msgs, err := unix.ParseSocketControlMessage(oob)
	for i := range msgs {
		if msgs[i].Header.Level != unix.SOL_SOCKET || msgs[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, ferr := unix.ParseUnixRights(&msgs[i])
		if ferr != nil {
			err = ferr
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return files, fmt.Errorf("%w: the control data was cut (at most %d files per message; raise the descriptor limit if it is less)", ErrTooMany, MaxFiles)
	}
	if err != nil {
		return files, fmt.Errorf("fdpass: control data: %w", err)
	}
	return files, nil
}

// writeFirst sends as much of p as the socket takes at once, with fds.
func writeFirst(conn Socket, p []byte, fds []int) (int, error) {
	n, _, err := conn.WriteMsgUnix(p, unix.UnixRights(fds...), nil)
	return n, err
}
