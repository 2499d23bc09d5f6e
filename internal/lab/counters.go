package lab

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Counters are the kernel's SNMP and extended TCP counters of one network
// namespace, by group and name as /proc/net/snmp and /proc/net/netstat print
// them: "Tcp.OutRsts", "TcpExt.ListenOverflows".
type Counters map[string]uint64

// Counters reads the namespace's counters.
func (n *Namespace) Counters() (Counters, error) {
	c := make(Counters)
	err := n.Do(func() error {
		for _, name := range []string{"snmp", "netstat"} {
			if err := c.readFile("/proc/thread-self/net/" + name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the counters of network namespace %d: %w", n.inode, err)
	}
	return c, nil
}

// readFile adds the counters of one file: pairs of lines, the first with the
// names, the second with the values, both starting with "Group:".
func (c Counters) readFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		names := strings.Fields(lines.Text())
		if !lines.Scan() {
			break
		}
		values := strings.Fields(lines.Text())
		if len(names) == 0 || len(names) != len(values) || names[0] != values[0] {
			return fmt.Errorf("%s: names and values do not match", path)
		}
		group := strings.TrimSuffix(names[0], ":")
		for i := 1; i < len(names); i++ {
			// Settings among the counters can be negative (Tcp.MaxConn).
			v, err := strconv.ParseUint(values[i], 10, 64)
			if err == nil {
				c[group+"."+names[i]] = v
			}
		}
	}
	return lines.Err()
}

// Since returns how much each counter grew from before to c. Gauges, which
// may have fallen, are left out.
func (c Counters) Since(before Counters) Counters {
	d := make(Counters, len(c))
	for name, v := range c {
		if old := before[name]; v >= old && name != "Tcp.CurrEstab" {
			d[name] = v - old
		}
	}
	return d
}
