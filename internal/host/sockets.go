package host

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Owner is a process that holds a socket.
type Owner struct {
	PID  uint32
	Comm string
	// Holders counts the processes that hold the same socket, this one
	// included; a listening socket is often shared by worker processes.
	Holders int
}

// Owners says which processes hold which sockets, as of one moment.
type Owners struct {
	held  []holding // by inode, then pid
	comms map[uint32]string
}

type holding struct {
	inode uint64
	pid   uint32
}

// SocketOwners looks through the open files of every process that it may
// look at: all of them with CAP_SYS_PTRACE. It takes about a second for a
// million open files.
func SocketOwners() (*Owners, error) {
	pids, err := pids()
	if err != nil {
		return nil, err
	}
	o := &Owners{comms: make(map[uint32]string)}
	buf := make([]byte, 64<<10)
	for _, pid := range pids {
		before := len(o.held)
		o.held = appendSockets(o.held, pid, buf)
		if len(o.held) == before {
			continue
		}
		comm, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/comm")
		if err != nil {
			o.held = o.held[:before] // ended meanwhile
			continue
		}
		o.comms[pid] = strings.TrimSuffix(string(comm), "\n")
	}
	slices.SortFunc(o.held, func(a, b holding) int {
		return cmp.Or(cmp.Compare(a.inode, b.inode), cmp.Compare(a.pid, b.pid))
	})
	// A process can hold one socket by several descriptors.
	o.held = slices.Clip(slices.Compact(o.held))
	return o, nil
}

// Owner returns the process to name for a socket: of several holders that
// with the lowest pid, which after fork() is the one that made the socket.
// It reports false when nobody is known to hold it.
func (o *Owners) Owner(inode uint64) (Owner, bool) {
	i := o.first(inode)
	n := 0
	for i+n < len(o.held) && o.held[i+n].inode == inode {
		n++
	}
	if n == 0 {
		return Owner{}, false
	}
	pid := o.held[i].pid
	return Owner{PID: pid, Comm: o.comms[pid], Holders: n}, true
}

// HoldersOf returns up to limit holders of a socket, sorted by pid.
func (o *Owners) HoldersOf(inode uint64, limit int) []Owner {
	owner, ok := o.Owner(inode)
	if !ok {
		return nil
	}
	i := o.first(inode)
	list := make([]Owner, 0, min(owner.Holders, limit))
	for _, h := range o.held[i : i+min(owner.Holders, limit)] {
		list = append(list, Owner{PID: h.pid, Comm: o.comms[h.pid], Holders: owner.Holders})
	}
	return list
}

func (o *Owners) first(inode uint64) int {
	i, _ := slices.BinarySearchFunc(o.held, inode, func(h holding, inode uint64) int {
		return cmp.Compare(h.inode, inode)
	})
	return i
}

// appendSockets adds the sockets among the open files of one process. There
// can be hundreds of thousands, so nothing is allocated for each: names go
// from the directory straight to readlinkat(2).
func appendSockets(list []holding, pid uint32, buf []byte) []holding {
	dir, err := unix.Open(fmt.Sprintf("/proc/%d/fd", pid), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return list
	}
	defer unix.Close(dir)
	var link [64]byte
	for {
		n, err := unix.Getdents(dir, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return list
		}
		for entries := buf[:n]; len(entries) > direntName; {
			// struct linux_dirent64: ino u64, off s64, reclen u16, type u8, name
			size := int(binary.NativeEndian.Uint16(entries[16:]))
			if size <= direntName || size > len(entries) {
				return list
			}
			name := entries[direntName:size]
			entries = entries[size:]
			if name[0] < '0' || name[0] > '9' {
				continue // . and ..
			}
			m, _, errno := unix.Syscall6(unix.SYS_READLINKAT, uintptr(dir),
				uintptr(unsafe.Pointer(&name[0])), uintptr(unsafe.Pointer(&link[0])), uintptr(len(link)), 0, 0)
			if errno != 0 {
				continue
			}
			if inode, ok := socketInode(link[:m]); ok {
				list = append(list, holding{inode: inode, pid: pid})
			}
		}
	}
}

// direntName is the offset of d_name in struct linux_dirent64.
const direntName = 19

// socketInode parses "socket:[12345]".
func socketInode(link []byte) (uint64, bool) {
	const prefix = "socket:["
	if len(link) < len(prefix)+2 || string(link[:len(prefix)]) != prefix || link[len(link)-1] != ']' {
		return 0, false
	}
	var inode uint64
	for _, c := range link[len(prefix) : len(link)-1] {
		if c < '0' || c > '9' || inode > (1<<64-1-9)/10 {
			return 0, false
		}
		inode = inode*10 + uint64(c-'0')
	}
	return inode, true
}
