// SPDX-License-Identifier: Apache-2.0

//go:build amd64 || arm64

package confine

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// What a GPU driver needs of the file system.
var (
	readable = []string{
		"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", "/proc", "/sys", "/run", "/opt", "/nix", "/gnu",
		"/var/lib/dpkg/alternatives", "/dev/dri",
	}
	// Devices of GPUs, by vendor, and those that every program may use. The
	// rest of /dev is left out: a daemon of root's would lend its disks.
	writable = []string{
		"/tmp", "/var/tmp", "/dev/shm",
		"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom",
		"/dev/dri", "/dev/kfd", "/dev/dxg", "/dev/nvidia*", "/dev/nvhost*", "/dev/nvmap", "/dev/nvgpu*",
		"/dev/mali*", "/dev/pvr*", "/dev/kgsl*", "/dev/udmabuf", "/dev/dma_heap",
	}
	// Variables by which a user names drivers outside the system's directories.
	pathVariables = []string{"VK_DRIVER_FILES", "VK_ADD_DRIVER_FILES", "VK_ICD_FILENAMES", "LD_LIBRARY_PATH"}
)

// driverEnvironment has drivers look for their shader caches in directory, or,
// if that is empty, keep none rather than look in the home directory.
func driverEnvironment(directory string) []string {
	if directory == "" {
		return []string{"MESA_SHADER_CACHE_DISABLE=true", "MESA_GLSL_CACHE_DISABLE=true", "__GL_SHADER_DISK_CACHE=0"}
	}
	return []string{
		"MESA_SHADER_CACHE_DIR=" + directory, "MESA_GLSL_CACHE_DIR=" + directory,
		"__GL_SHADER_DISK_CACHE_PATH=" + directory, "XDG_CACHE_HOME=" + directory,
	}
}

// Confine confines the process and everything it starts, and returns what is in
// place. It must be called before the process does anything else of note:
// confinement concerns one thread, so Confine confines the one it is on and
// executes the program anew from it. The second call, in the new program, with
// the same arguments and descriptors, returns.
//
// A shader cache, if not empty, is the absolute path of a directory of which
// the process gets the use, and in which drivers are told to keep compiled
// shaders; without one they keep none.
func Confine(shaderCache string) (State, error) {
	if text, ok := os.LookupEnv(mark); ok {
		state, err := parseState(text)
		if err != nil {
			return State{}, fmt.Errorf("confine: %s=%q: %w", mark, text, err)
		}
		if set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || set != 1 {
			return State{}, fmt.Errorf("confine: %s is set, but this process is not confined", mark)
		}
		return state, nil
	}
	runtime.LockOSThread() // for good: the thread ends in exec, or the process in an error
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return State{}, os.NewSyscallError("prctl(PR_SET_NO_NEW_PRIVS)", err)
	}
	var state State
	var err error
	if state.Landlock, err = restrictFiles(shaderCache); err != nil {
		return State{}, err
	}
	if state.Seccomp, err = filterCalls(); err != nil {
		return State{}, err
	}
	// That the process dies with its parent is a thread's property, and this need
	// not be the thread that Spawn gave it to.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return State{}, os.NewSyscallError("prctl(PR_SET_PDEATHSIG)", err)
	}
	env := append(os.Environ(), driverEnvironment(shaderCache)...)
	err = unix.Exec("/proc/self/exe", os.Args, append(env, mark+"="+state.marshal()))
	return State{}, fmt.Errorf("confine: execute this program (%s) anew: %w", os.Args[0], err)
}

// paths expands patterns and follows links, and adds what the environment names.
func paths(patterns []string, variables ...string) []string {
	var list []string
	for _, pattern := range patterns {
		matches, _ := filepath.Glob(pattern) // the patterns are well-formed
		list = append(list, matches...)
	}
	for _, variable := range variables {
		for path := range strings.SplitSeq(os.Getenv(variable), ":") {
			if filepath.IsAbs(path) {
				list = append(list, path)
			}
		}
	}
	return list
}
