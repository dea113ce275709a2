// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/memspan/memspan/internal/confine"
)

func newICD() *cobra.Command {
	return &cobra.Command{
		Use:   "icd",
		Short: "Print the path of the Vulkan driver's manifest",
		Long: `Icd prints the path of the manifest by which Vulkan's loader finds memspan's
driver, for those who set VK_DRIVER_FILES themselves. The driver reads:

  MEMSPAN_SERVER        the daemon's address (default: this user's daemon)
  MEMSPAN_TOKEN_FILE    the token that TCP and TLS connections present
  MEMSPAN_TLS_CA, MEMSPAN_TLS_CERT, MEMSPAN_TLS_KEY
  MEMSPAN_TRACE         count round trips by command: a file's path, or -`,
		Example: `  memspan icd
  VK_DRIVER_FILES=$(memspan icd) vulkaninfo --summary`,
		Args: args(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			manifest, err := findDriver("")
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), manifest)
			return err
		},
	}
}

// findDriver returns the path of the driver's manifest, whose library is there
// too: the given one, else the one beside this program.
func findDriver(manifest string) (string, error) {
	if manifest == "" {
		program, err := os.Executable()
		if err == nil {
			program, err = filepath.EvalSymlinks(program)
		}
		if err != nil {
			return "", fmt.Errorf("find the Vulkan driver: %w", err)
		}
		manifest = filepath.Join(filepath.Dir(program), confine.OwnDriver)
	}
	manifest, err := filepath.Abs(manifest)
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(manifest)
	if err != nil {
		return "", driverMissing(err)
	}
	var m struct {
		ICD struct {
			Library string `json:"library_path"`
		}
	}
	if err := json.Unmarshal(data, &m); err != nil || m.ICD.Library == "" {
		return "", fmt.Errorf("%s is no manifest of a Vulkan driver", manifest)
	}
	library := m.ICD.Library // beside the manifest, unless it says otherwise
	if !filepath.IsAbs(library) {
		library = filepath.Join(filepath.Dir(manifest), library)
	}
	if _, err := os.Stat(library); err != nil {
		return "", driverMissing(err)
	}
	return manifest, nil
}

// driverMissing says what to do about a driver that is not there.
func driverMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the Vulkan driver is not built; build it, with a C compiler: make build: %w", err)
	}
	return fmt.Errorf("the Vulkan driver: %w", err)
}
