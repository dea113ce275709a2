// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package confine

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// denied are the system calls that no driver needs and that reach out of the
// process: other processes, the network by side doors, mounts, modules, the
// clock, the kernel. They fail with EPERM.
var denied = []uint32{
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD, unix.SYS_PROCESS_MADVISE,
	unix.SYS_CONNECT, unix.SYS_BIND, unix.SYS_LISTEN, unix.SYS_ACCEPT, unix.SYS_ACCEPT4,
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE,
	unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
	unix.SYS_SETNS, unix.SYS_UNSHARE, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_NAME_TO_HANDLE_AT,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_FANOTIFY_INIT,
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
	unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE,
	unix.SYS_REBOOT, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ACCT, unix.SYS_QUOTACTL, unix.SYS_SYSLOG, unix.SYS_VHANGUP,
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_ADJTIMEX, unix.SYS_CLOCK_ADJTIME,
	unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME, unix.SYS_MIGRATE_PAGES, unix.SYS_MOVE_PAGES,
}

// namespaces are the flags by which clone makes namespaces.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// filterCalls installs the filter on the calling thread. It returns false on a
// kernel without seccomp filters.
func filterCalls() (bool, error) {
	program := callFilter()
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	// The kernel copies the program during the call.
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
	if errors.Is(errno, unix.ENOSYS) || errors.Is(errno, unix.EINVAL) {
		return false, nil
	} else if errno != 0 {
		return false, os.NewSyscallError("seccomp", errno)
	}
	return true, nil
}

// callFilter returns the filter: a classic BPF program over struct seccomp_data
// {int nr; u32 arch; u64 instruction_pointer; u64 args[6]}.
func callFilter() []unix.SockFilter {
	const (
		load    = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		atLeast = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		anyOf   = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		ret     = unix.BPF_RET | unix.BPF_K

		// Both architectures are little-endian: the low word comes first.
		offNumber, offArch, offArg0, offArg1 = 0, 4, 16, 24

		socketKind = 0xf // the rest of socket's type is flags
	)
	fail := func(errno unix.Errno) unix.SockFilter {
		return unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(errno)}
	}
	allow := unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW}
	program := []unix.SockFilter{
		{Code: load, K: offArch},
		{Code: equal, K: auditArch, Jt: 1},
		{Code: ret, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: load, K: offNumber},
		{Code: atLeast, K: 0x40000000, Jf: 1}, // the x32 calls of amd64: the same ones by other numbers
		fail(unix.ENOSYS),
		// clone3's flags are out of a filter's reach; without it, the C
		// library uses clone.
		{Code: equal, K: unix.SYS_CLONE3, Jf: 1},
		fail(unix.ENOSYS),
	}
	for _, number := range append(denied, deniedHere...) {
		program = append(program, unix.SockFilter{Code: equal, K: number, Jf: 1}, fail(unix.EPERM))
	}
	return append(program,
		// A stream socket reaches nobody, for it cannot connect; a datagram has
		// its address with it.
		unix.SockFilter{Code: equal, K: unix.SYS_SOCKET, Jf: 7},
		unix.SockFilter{Code: load, K: offArg0},
		unix.SockFilter{Code: equal, K: unix.AF_UNIX, Jf: 3},
		unix.SockFilter{Code: load, K: offArg1},
		unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: socketKind},
		unix.SockFilter{Code: equal, K: unix.SOCK_STREAM, Jt: 1},
		fail(unix.EACCES),
		allow,
		unix.SockFilter{Code: equal, K: unix.SYS_CLONE, Jf: 4},
		unix.SockFilter{Code: load, K: offArg0},
		unix.SockFilter{Code: anyOf, K: namespaces, Jf: 1},
		fail(unix.EPERM),
		allow,
		allow,
	)
}
