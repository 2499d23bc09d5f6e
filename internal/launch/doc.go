// Package launch starts a command, follows it and all its descendants, and tells
// which of the processes that tcptrace hears of are among them.
//
// There are two ways to follow. A cgroup of the command's own holds the command
// from its first instruction, and every process that it starts is born into it.
// Where none can be made (cgroup v1, a read-only mount as in most containers, a
// unit that was not delegated), a pair of small BPF programs notes each fork().
// Both know every descendant, however short it lives; they differ in what else
// they see (see [Command.Caveat]).
package launch
