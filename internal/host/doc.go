// Package host tells what the machine knows beyond the traced events: network
// namespaces and how to enter them, their sysctls and SNMP counters, which
// process holds which socket, the clocks, and what this process is allowed to
// do.
//
// Everything is read at the moment of the call; nothing is cached. All
// functions may be called concurrently. Process ids are those of the /proc
// that is mounted: they agree with the tracer's only in the initial pid
// namespace, which [Privileges] reports.
package host
