package main

import (
	"errors"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/tracer"
)

// filterFlags adds the filters, which many commands share.
func filterFlags(cmd *cobra.Command) *filter.Flags {
	f := new(filter.Flags)
	add := func(to *[]string, name, value, help string) {
		cmd.Flags().StringArrayVar(to, name, nil, strings.Replace(help, value, "`"+value+"`", 1))
	}
	add(&f.Port, "port", "PORT", "only connections with this PORT at either end")
	add(&f.LocalPort, "lport", "PORT", "only with this local PORT")
	add(&f.RemotePort, "rport", "PORT", "only with this remote PORT")
	add(&f.Addr, "addr", "CIDR", "only with an address in this CIDR at either end")
	add(&f.PID, "pid", "PID", "only of the process with this PID")
	add(&f.Comm, "comm", "NAME", "only of processes with this NAME")
	add(&f.Netns, "netns", "NETNS", "only in this NETNS: a path, inode or name")
	add(&f.Cgroup, "cgroup", "PATH", "only of processes in the cgroup at PATH or beneath")
	add(&f.Code, "code", "CODE", "only with the verdict CODE")
	add(&f.State, "state", "STATE", "only in this STATE")
	complete(cmd, "code", codes()...)
	complete(cmd, "state", "established", "syn-sent", "syn-recv", "fin-wait-1", "fin-wait-2", "time-wait", "close", "close-wait", "last-ack", "listen", "closing")
	return f
}

// parseFilter reads the filters in the surroundings of this host.
func parseFilter(f *filter.Flags) (filter.Filter, error) {
	parsed, err := filter.Parse(*f, filter.Environment{
		Codes: codes(),
		Netns: func(spec string) (uint32, error) {
			ns, err := host.ResolveNetns(spec)
			return ns.Inode, err
		},
	})
	return parsed, forbiddenNetns(err)
}

// forbiddenNetns tells where a --netns is written as it should be, but may not
// be looked at.
func forbiddenNetns(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return &failure{err, "run it with sudo; the namespaces of other users' processes cannot be opened without", exitForbidden}
	}
	return err
}

// kernelFilter is the part of a filter that the kernel side evaluates.
func kernelFilter(f filter.Filter) tracer.KernelFilter {
	return tracer.KernelFilter{Ports: f.Ports, LocalPorts: f.LocalPorts, RemotePorts: f.RemotePorts, Addrs: f.Addrs, Netns: f.Netns}
}
