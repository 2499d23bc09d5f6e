package sockets

// Counter is one of the kernel's counters that says that something went wrong
// at some time since its network namespace began.
type Counter struct {
	Name    string // as nstat shows it, without its group
	Value   uint64
	Meaning string
	// Of is what it is a part of, where that is counted, and OfName its name.
	Of     uint64
	OfName string
	// Common counters grow on healthy hosts too.
	Common bool
}

// troubles are the counters to tell of, the most telling first.
var troubles = []struct {
	key, meaning, of string
	common           bool
}{
	{"TcpExt.ListenOverflows", "SYNs and ACKs at a full accept queue", "", false},
	{"TcpExt.ListenDrops", "SYNs and ACKs dropped at listeners, in all", "", false},
	{"TcpExt.TCPReqQFullDrop", "SYNs dropped: too many half-open", "", false},
	{"TcpExt.TCPReqQFullDoCookies", "SYN cookies sent: too many half-open", "", false},
	{"TcpExt.SyncookiesFailed", "ACKs with a SYN cookie that was not valid", "", false},
	{"TcpExt.TCPTimeWaitOverflow", "TIME_WAIT skipped: tcp_max_tw_buckets", "", false},
	{"TcpExt.TCPAbortOnMemory", "killed: TCP memory, or too many orphans", "", false},
	{"TcpExt.TCPMemoryPressures", "times that TCP came under memory pressure", "", false},
	{"TcpExt.PruneCalled", "receive buffers that had to be pruned", "", false},
	{"TcpExt.RcvPruned", "segments dropped: receive buffer full", "", false},
	{"TcpExt.TCPRcvQDrop", "segments dropped: receive queue full", "", false},
	{"TcpExt.TCPBacklogDrop", "segments dropped: socket backlog full", "", false},
	{"TcpExt.TCPZeroWindowDrop", "segments dropped: receive window shut", "", false},
	{"TcpExt.PAWSActive", "SYN-ACKs refused for an old timestamp", "", false},
	{"TcpExt.PAWSEstab", "segments refused for an old timestamp", "", false},
	{"TcpExt.TSEcrRejected", "SYN-ACKs refused for a wrong timestamp echo", "", false},
	{"TcpExt.TCPAbortOnTimeout", "connections given up: no answer", "", false},
	{"TcpExt.TCPAbortFailed", "resets not sent, for lack of memory", "", false},
	{"TcpExt.TCPAbortOnLinger", "reset: FIN_WAIT2 cut short (TCP_LINGER2)", "", false},
	{"TcpExt.TCPAbortOnData", "reset: data after close(), or SO_LINGER 0", "", true},
	{"TcpExt.TCPAbortOnClose", "reset: close() with data unread", "", true},
	{"Tcp.InErrs", "segments with errors", "", false},
	{"Tcp.AttemptFails", "handshakes that failed, at either end", "", true},
	{"Tcp.EstabResets", "connections reset, by either end", "", true},
	{"Tcp.OutRsts", "resets sent", "", true},
	{"TcpExt.TCPTimeouts", "retransmission timeouts", "", true},
	{"TcpExt.TCPSynRetrans", "SYNs and SYN-ACKs sent again", "", true},
	{"Tcp.RetransSegs", "segments sent again", "Tcp.OutSegs", true},
}

// Troubles picks those counters that are not zero. values are by group and
// name, such as "TcpExt.ListenOverflows".
func Troubles(values map[string]uint64) []Counter {
	var list []Counter
	for _, t := range troubles {
		v := values[t.key]
		if v == 0 {
			continue
		}
		c := Counter{Name: plainName(t.key), Value: v, Meaning: t.meaning, Common: t.common}
		if of := values[t.of]; of > 0 {
			c.Of, c.OfName = of, plainName(t.of)
		}
		list = append(list, c)
	}
	return list
}

func plainName(key string) string {
	for i := range len(key) {
		if key[i] == '.' {
			return key[i+1:]
		}
	}
	return key
}
