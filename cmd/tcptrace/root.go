package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/tcptrace/tcptrace/internal/filter"
)

func newRoot(u *ui) *cobra.Command {
	root := &cobra.Command{
		Use:   "tcptrace",
		Short: "Name the cause of a TCP connection's end, with its evidence",
		Long: `tcptrace watches the TCP connections of this host in the kernel and names, for
those that went wrong, the cause in one line, the timeline beneath it and what
to do about it.`,
		Example: `  sudo tcptrace watch --port 8080     verdicts about one port, as they happen
  sudo tcptrace demo C                see what a full accept queue looks like
  tcptrace explain reset-sent         what a verdict means
  sudo tcptrace doctor                what this kernel allows`,
		SilenceErrors: true,
		SilenceUsage:  true,
		// Cobra's own suggestions would come without a hint line.
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			hint := "`tcptrace --help` lists the commands"
			var names []string
			for _, c := range cmd.Commands() {
				names = append(names, c.Name())
			}
			if near := filter.Nearest(args[0], names); near != "" {
				hint = fmt.Sprintf("did you mean %s? %s", near, hint)
			}
			return usage(hint, "unknown command %q", args[0])
		},
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error { return u.startLog() },
	}
	root.SetFlagErrorFunc(flagError)
	root.PersistentFlags().Var(newChoice(&u.logLevel, "warn", "debug", "info", "warn", "error", "off"), "log-level",
		"`LEVEL` of diagnostics: debug, info, warn, error or off")
	complete(root, "log-level", "debug", "info", "warn", "error", "off")
	root.AddCommand(newWatch(u), newRecord(u), newReport(u), newExport(u), newRun(u), newSockets(u), newDemo(u), newExplain(u), newDoctor(u), newVersion(u))
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	return root
}
