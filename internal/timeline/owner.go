package timeline

import "github.com/tcptrace/tcptrace/internal/container"

// Source tells how the owner of a connection is known, from the strongest to
// the weakest.
type Source uint8

const (
	SourceUnknown  Source = iota
	SourceListener        // the process that holds the listening socket
	SourceClose           // the process that closed it
	SourceSnapshot        // the holder of the socket's inode
	SourceAccept          // the process that accept()ed it
	SourceConnect         // the process that connect()ed it
)

var sourceNames = [...]string{"unknown", "listener", "close", "snapshot", "accept", "connect"}

// String returns the name used in the output.
func (s Source) String() string {
	if int(s) < len(sourceNames) {
		return sourceNames[s]
	}
	return "unknown"
}

// Owner is the process behind a connection. Comm and Cgroup come from the
// traced host: escape them before they reach a terminal.
type Owner struct {
	PID      uint32 // in the initial pid namespace, 0 unknown
	Comm     string
	Cgroup   string // path, "" unknown
	CgroupID uint64 // cgroup v2 id, 0 unknown
	Source   Source
}

// Known reports whether there is a process to name.
func (o Owner) Known() bool { return o.Source != SourceUnknown }

// Container is the container that the owner's cgroup belongs to, nil if its
// path names none.
func (o Owner) Container() *container.Container {
	if c, ok := container.Parse(o.Cgroup); ok {
		return &c
	}
	return nil
}
