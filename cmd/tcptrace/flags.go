package main

import (
	"github.com/spf13/cobra"

	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/tracer"
)

// filterFlags adds the filters, which many commands share.
func filterFlags(cmd *cobra.Command) *filter.Flags {
	f := new(filter.Flags)
	add := func(to *[]string, name, value, help string) {
		cmd.Flags().StringArrayVar(to, name, nil, help+" `"+value+"`")
	}
	add(&f.Port, "port", "PORT", "only connections with this port at either end:")
	add(&f.LocalPort, "lport", "PORT", "only with this local port:")
	add(&f.RemotePort, "rport", "PORT", "only with this remote port:")
	add(&f.Addr, "addr", "CIDR", "only with this address or network at either end:")
	add(&f.PID, "pid", "PID", "only of this process:")
	add(&f.Comm, "comm", "NAME", "only of processes with this name:")
	add(&f.Netns, "netns", "NETNS", "only in this network namespace, by path, inode or name:")
	add(&f.Cgroup, "cgroup", "PATH", "only of processes in this cgroup or beneath it:")
	add(&f.Code, "code", "CODE", "only with this verdict:")
	add(&f.State, "state", "STATE", "only in this state:")
	complete(cmd, "code", codes()...)
	complete(cmd, "state", "established", "syn-sent", "syn-recv", "fin-wait-1", "fin-wait-2", "time-wait", "close", "close-wait", "last-ack", "listen", "closing")
	return f
}

// parseFilter reads the filters in the surroundings of this host.
func parseFilter(f *filter.Flags) (filter.Filter, error) {
	return filter.Parse(*f, filter.Environment{
		Codes: codes(),
		Netns: func(spec string) (uint32, error) {
			ns, err := host.ResolveNetns(spec)
			return ns.Inode, err
		},
	})
}

// kernelFilter is the part of a filter that the kernel side evaluates.
func kernelFilter(f filter.Filter) tracer.KernelFilter {
	return tracer.KernelFilter{Ports: f.Ports, LocalPorts: f.LocalPorts, RemotePorts: f.RemotePorts, Addrs: f.Addrs, Netns: f.Netns}
}
