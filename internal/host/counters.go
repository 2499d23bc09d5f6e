package host

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// Counters are the kernel's SNMP counters of one network namespace.
type Counters struct {
	// Cookie tells namespaces apart whose inode number is the same because
	// one took over from the other. 0 where the kernel cannot tell.
	Cookie uint64
	// Value is by group and name as in /proc/net/snmp and netstat:
	// "Tcp.OutRsts", "TcpExt.ListenOverflows". Settings among the counters
	// that are negative (Tcp.MaxConn) are left out.
	Value map[string]uint64
}

// ReadCounters reads the namespace's counters.
func ReadCounters(n Netns) (Counters, error) {
	c := Counters{Value: make(map[string]uint64, 512)}
	err := Enter(n, func() error {
		c.Cookie = cookie()
		for _, name := range []string{"snmp", "netstat"} {
			f, err := os.Open("/proc/thread-self/net/" + name)
			if err != nil {
				return err
			}
			err = c.parse(f)
			f.Close()
			if err != nil {
				return fmt.Errorf("/proc/net/%s: %w", name, err)
			}
		}
		return nil
	})
	if err != nil {
		return Counters{}, fmt.Errorf("reading the counters of network namespace %d: %w", n.Inode, err)
	}
	return c, nil
}

// parse adds pairs of lines, names and then values, both starting with the
// name of their group.
func (c Counters) parse(r io.Reader) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		names := strings.Fields(lines.Text())
		if !lines.Scan() {
			return io.ErrUnexpectedEOF
		}
		values := strings.Fields(lines.Text())
		if len(names) == 0 || len(names) != len(values) || names[0] != values[0] {
			return fmt.Errorf("names and values do not match")
		}
		group := strings.TrimSuffix(names[0], ":")
		for i := 1; i < len(names); i++ {
			v, err := strconv.ParseUint(values[i], 10, 64)
			if err == nil {
				c.Value[group+"."+names[i]] = v
			}
		}
	}
	return lines.Err()
}
