// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/spf13/cobra"
)

// options are the flags that all commands share.
type options struct {
	address   string
	tokenFile string
	tlsCA     string
	tlsCert   string
	tlsKey    string
	json      bool
}

func newRoot() *cobra.Command {
	opts := new(options)
	showVersion := false
	root := &cobra.Command{
		Use:   "memspan",
		Short: "Memory that lives elsewhere, mapped as if it were yours",
		Long: `memspan keeps spans of memory in a GPU, in RAM or on disk and maps them for
programs on this machine and on others. 'memspan serve' runs the daemon that
holds them; the other commands talk to it.

Exit status: 0 all went well, 1 something failed, 2 the command line is wrong;
'memspan lock' has that of the command it runs.`,
		Example: `  memspan serve &
  memspan put model.bin --name weights --tier vram
  memspan get weights | cmp - model.bin`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if showVersion {
				return printVersion(cmd, opts)
			}
			if len(args) == 0 {
				return cmd.Help()
			}
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				return usagef("unknown command %q; did you mean %s?", args[0], strings.Join(near, " or "))
			}
			return usagef("unknown command %q", args[0])
		},
		SuggestionsMinimumDistance: 2,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })

	root.Flags().BoolVar(&showVersion, "version", false, "print the version")
	flags := root.PersistentFlags()
	flags.StringVarP(&opts.address, "address", "a", "",
		"the daemon's `address`: a socket's path, tcp://HOST:PORT or tls://HOST:PORT[#FINGERPRINT] (default $MEMSPAN_ADDRESS, else the unix socket of 'memspan serve')")
	flags.StringVar(&opts.tokenFile, "token-file", "", "`file` with the token that TCP and TLS connections present")
	flags.StringVar(&opts.tlsCA, "tls-ca", "", "`file` with the certificate authorities (PEM) that may vouch for the daemon")
	flags.StringVar(&opts.tlsCert, "tls-cert", "", "`file` with this side's certificate (PEM)")
	flags.StringVar(&opts.tlsKey, "tls-key", "", "`file` with the key of --tls-cert (PEM)")
	flags.BoolVar(&opts.json, "json", false, "print one JSON document instead of text; an error is one, on standard error")

	root.AddCommand(
		newServe(opts), newPut(opts), newGet(opts), newList(opts), newStat(opts), newTop(opts), newCopy(opts),
		newAdvise(opts), newRemove(opts), newLock(opts), newSync(opts), newAccept(opts), newFsck(opts), newDoctor(opts), newDemo(opts), newVersion(opts), newWorker(),
		newRun(opts), newICD(), newBench(opts), newHost(opts), newBuffer(opts),
		newExpose(opts), newPull(opts), newSurfaces(opts), newTicket(opts),
	)
	return root
}

// args makes a wrong number of arguments a usage error that names them.
func args(check cobra.PositionalArgs, want string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if check(cmd, args) != nil {
			return usagef("%s takes %s; it was given %d", cmd.CommandPath(), want, len(args))
		}
		return nil
	}
}

// printJSON writes v as the command's one JSON document.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// A table lines its rows up in columns.
type table struct {
	w *tabwriter.Writer
}

func newTable(w io.Writer, header ...string) *table {
	t := &table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	if len(header) > 0 {
		t.row(header...)
	}
	return t
}

func (t *table) row(cells ...string) {
	for i := range cells {
		cells[i] = shown(cells[i])
	}
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
}

// shown returns a text of somebody else's, a name or an error, so that it cannot steer a
// terminal: what is not to be seen is escaped, but for line ends.
func shown(text string) string {
	var b strings.Builder
	for _, r := range text {
		if r == '\n' || unicode.IsGraphic(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		}
	}
	return b.String()
}

func (t *table) flush() error { return t.w.Flush() }
