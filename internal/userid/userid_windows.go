// SPDX-License-Identifier: Apache-2.0

package userid

import (
	"os"

	"golang.org/x/sys/windows"
)

// Of returns the number of the user that sid names, valid or not.
func Of(sid *windows.SID) (int, error) {
	me, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return 0, os.NewSyscallError("GetTokenInformation", err)
	}
	switch {
	case sid.Equals(me.User.Sid):
		return os.Getuid(), nil
	case sid.IsWellKnown(windows.WinLocalSystemSid):
		return 0, nil
	case sid.SubAuthorityCount() == 0:
		return 1, nil // no user has such an identifier
	}
	return int(sid.SubAuthority(uint32(sid.SubAuthorityCount()) - 1)), nil
}

// OfOwner returns the number of the user that a file belongs to. What belongs to
// the machine's administrators belongs to this process if it is one of theirs:
// Windows makes them the owner of files that such a process makes.
func OfOwner(sid *windows.SID) (int, error) {
	if sid.IsWellKnown(windows.WinBuiltinAdministratorsSid) {
		// The token 0 is the caller's own.
		if member, err := windows.Token(0).IsMember(sid); err == nil && member {
			return os.Getuid(), nil
		}
	}
	return Of(sid)
}
