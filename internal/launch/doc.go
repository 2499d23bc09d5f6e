// Package launch starts a command, follows it and all its descendants, and tells
// which of the processes that tcptrace hears of are among them.
//
// There are two ways to follow, and both are used where they can be. A cgroup of
// the command's own holds the command from its first instruction, and every
// process that it starts is born into it; none can be made with cgroup v1 only,
// under a read-only mount as in most containers, or in a unit that was not
// delegated. And a pair of small BPF programs notes each fork() of a descendant,
// also of one that has left the cgroup for another, as login sessions and
// container managers do. Either knows of a process before it runs, so none is too
// short-lived to be followed. What neither can know is that a service did
// something on the command's behalf.
package launch
