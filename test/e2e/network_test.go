// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// networkRole is that of a child which runs a test in a network of its own.
const networkRole = "network"

// inOwnNetwork reports whether the test is to go on here. It is not where a child
// has run it in a network without anybody else's connections, where Linux allows
// one to be made.
func inOwnNetwork(t *testing.T) bool {
	t.Helper()
	if os.Getenv(roleEnv) == networkRole {
		return true
	}
	args := []string{"-test.v", "-test.run=^" + t.Name() + "$"}
	if deadline, ok := t.Deadline(); ok {
		args = append(args, fmt.Sprint("-test.timeout=", time.Until(deadline)))
	}
	// No module can be had from in there.
	if out, err := exec.Command("go", "mod", "download").CombinedOutput(); err != nil {
		t.Logf("go mod download: %v\n%s", err, out)
	}
	var out strings.Builder
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), roleEnv+"="+networkRole)
	cmd.Stdout, cmd.Stderr = &out, &out
	uid, gid := os.Getuid(), os.Getgid()
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}},
		AmbientCaps: []uintptr{unix.CAP_NET_ADMIN},
	}
	if err := cmd.Start(); err != nil {
		t.Logf("no network of its own: %v", err)
		return true
	}
	err := cmd.Wait()
	t.Log(out.String())
	switch {
	case err != nil:
		t.Errorf("in a network of its own: %v", err)
	case strings.Contains(out.String(), "--- SKIP: "+t.Name()+" "):
		t.Skip("skipped in a network of its own")
	case !strings.Contains(out.String(), "--- PASS: "+t.Name()+" "):
		t.Error("it was not run in a network of its own")
	}
	return false
}

// startNetwork makes the network that this process is in one that reaches itself.
func startNetwork() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	lo, err := unix.NewIfreq("lo")
	if err == nil {
		lo.SetUint16(unix.IFF_UP)
		err = os.NewSyscallError("SIOCSIFFLAGS", unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo))
	}
	return errors.Join(err, unix.Close(s))
}
