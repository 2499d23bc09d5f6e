package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/internal/render"
)

// version is set by the release build (-ldflags "-X main.version=v1.2.3").
var version string

// versionName is the release, or else what Go knows of the build.
func versionName() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	name, dirty := "devel", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			name = "devel-" + s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+changes"
		}
	}
	return name + dirty
}

func newVersion(u *ui) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "The version of tcptrace, and what it runs on",
		Args:  atMost(0),
		RunE: func(*cobra.Command, []string) error {
			p, err := host.ReadPrivileges()
			if err != nil {
				return err
			}
			if u.output == "json" {
				return json.NewEncoder(u.out).Encode(map[string]string{
					"type": "version", "version": versionName(), "go": runtime.Version(),
					"os": runtime.GOOS, "arch": runtime.GOARCH, "kernel": p.Kernel,
				})
			}
			_, err = fmt.Fprintf(u.out, "tcptrace %s (%s, %s/%s), Linux %s\n",
				versionName(), runtime.Version(), runtime.GOOS, runtime.GOARCH, render.Safe(p.Kernel))
			return err
		},
	}
	u.outputFlag(cmd)
	return cmd
}
