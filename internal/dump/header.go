package dump

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// Format is the version that an [Encoder] writes and the newest that a
// [Reader] reads.
const Format = 1

// Header says what a dump is of. The first two frames hold it, both the same.
type Header struct {
	Format int    `json:"format"`
	Tool   string `json:"tool"` // version of tcptrace that wrote it
	// Run is the same in all parts of a recording, and in no other.
	Run string `json:"run"`
	// Part counts the files of a recording from 0.
	Part   int    `json:"part"`
	Host   string `json:"host"`
	Kernel string `json:"kernel"`
	BootID string `json:"boot_id,omitempty"`
	// Started is when tracing began, in nanoseconds since 1970, and StartedBoot
	// the same moment of CLOCK_BOOTTIME.
	Started     int64    `json:"started"`
	StartedBoot int64    `json:"started_boot"`
	Command     []string `json:"command,omitempty"` // the command line; none if redacted
	// Key makes the connections' IDs, so that they are the same on replay.
	Key [16]byte `json:"key"`
	// Rules are the thresholds of the recording's own diagnosis, by their flags,
	// and Filter is what it was about, likewise.
	Rules  map[string]string   `json:"rules,omitempty"`
	Filter map[string][]string `json:"filter,omitempty"`
	// Window is set where the dump is what a flight recorder still had.
	Window *Window `json:"window,omitempty"`
	// Redacted says that addresses are pseudonyms.
	Redacted     bool               `json:"redacted,omitempty"`
	Capabilities event.Capabilities `json:"capabilities"`
	Layout       Layout             `json:"layout"`
}

// Window says why a flight recorder wrote a dump.
type Window struct {
	Trigger string        `json:"trigger"` // a verdict's code, "signal" or "exit"
	At      int64         `json:"at"`      // ns since 1970
	Asked   time.Duration `json:"asked"`   // how far back it was to reach, ns
	Dropped uint64        `json:"dropped"` // events that were older, or too many to be kept
}

// Layout names the numbers of each group in the order in which they are
// written. Later versions may add some at the end of a group, which a reader
// that does not know them passes over.
type Layout struct {
	Shape     []string `json:"shape"`
	Traffic   []string `json:"traffic"`
	Listener  []string `json:"listener"`
	Inventory []string `json:"inventory"`
	Sysctls   []string `json:"sysctls"`
}

// layout is that of this version.
var layout = Layout{
	Shape:     []string{"kind", "old", "new", "flags", "err", "attempt", "reason", "tcp_flags", "out", "has", "traffic"},
	Traffic:   []string{"bytes_sent", "bytes_received", "srtt_us", "retransmits", "unread", "unacked"},
	Listener:  []string{"queue_len", "queue_limit", "syn_queue_len", "somaxconn", "backlog", "abort_on_overflow", "syncookies", "attempt", "synack_retries"},
	Inventory: []string{"inode", "uid", "keepalive_time", "keepalive_interval", "keepalive_probes", "idle", "sent_idle", "left", "send_window", "receive_window", "probes", "retransmits", "minisocket"},
	Sysctls: []string{"somaxconn", "tcp_syn_retries", "tcp_synack_retries", "tcp_syncookies", "tcp_abort_on_overflow", "tcp_max_syn_backlog", "tcp_retries2",
		"tcp_keepalive_time", "tcp_keepalive_intvl", "tcp_keepalive_probes", "tcp_fin_timeout", "tcp_tw_reuse", "tcp_max_tw_buckets", "port_range_low", "port_range_high"},
}

// maxFields bounds a group of a header from elsewhere.
const maxFields = 64

// check reports what a reader cannot live with.
func (h *Header) check() error {
	if h.Format > Format {
		return fmt.Errorf("its format is version %d, and this tcptrace reads up to %d: %w", h.Format, Format, ErrNewer)
	}
	if h.Format < 1 {
		return errors.New("its header names no version of the format")
	}
	for _, g := range []struct {
		name string
		have []string
		want []string
	}{
		{"shape", h.Layout.Shape, layout.Shape},
		{"traffic", h.Layout.Traffic, layout.Traffic},
		{"listener", h.Layout.Listener, layout.Listener},
		{"inventory", h.Layout.Inventory, layout.Inventory},
		{"sysctls", h.Layout.Sysctls, layout.Sysctls},
	} {
		if len(g.have) > maxFields {
			return fmt.Errorf("its header has %d fields in group %s, more than %d", len(g.have), g.name, maxFields)
		}
		for i := range min(len(g.have), len(g.want)) {
			if g.have[i] != g.want[i] {
				return fmt.Errorf("field %d of group %s is %q in its header, not %q", i, g.name, g.have[i], g.want[i])
			}
		}
	}
	// A shape says what follows it.
	if len(h.Layout.Shape) < len(layout.Shape) {
		return fmt.Errorf("its header has %d fields in group shape, fewer than %d", len(h.Layout.Shape), len(layout.Shape))
	}
	return nil
}

// Audit is how the kernel's counters and the hooks' stood at a time, each
// since the run began.
type Audit struct {
	At    int64         `json:"at"` // CLOCK_BOOTTIME, ns
	Lines []AuditLine   `json:"lines"`
	Notes []string      `json:"notes,omitempty"` // what is missing, and why
	Since time.Duration `json:"since"`           // over which interval, ns
}

// AuditLine holds one counter of the kernel against what was seen.
type AuditLine struct {
	Counter   string `json:"counter"`
	Netns     uint32 `json:"netns"`
	Kernel    uint64 `json:"kernel"`
	Explained uint64 `json:"explained"`
	Exact     bool   `json:"exact"`
	Note      string `json:"note,omitempty"`
}

// Cost is what tracing took from the machine.
type Cost struct {
	BPFNanosPerEvent float64 `json:"bpf_ns_per_event"`
	BPFCPUPercent    float64 `json:"bpf_cpu_percent"`
	UserCPUPercent   float64 `json:"user_cpu_percent"`
	RSSBytes         uint64  `json:"rss_bytes"`
	BPFKnown         bool    `json:"bpf_known"`
	Filtered         bool    `json:"filtered"`
}

// Reasons why a part ends.
const (
	EndDone    = "done"     // tracing ended as it was meant to
	EndRotated = "rotated"  // another part follows
	EndSpace   = "min-free" // too little space was left
	EndWindow  = "window"   // a flight recorder's window, the run went on
	EndError   = "error"
)

// End is the last word of a part. A dump without one was cut off.
type End struct {
	Reason string `json:"reason"`
	Text   string `json:"text,omitempty"` // more of it, for people
	At     int64  `json:"at"`             // CLOCK_BOOTTIME, ns
	// Summary is set where tracing ended.
	Summary *Summary `json:"summary,omitempty"`
}

// Summary is what only the recording itself could know at its end.
type Summary struct {
	Duration time.Duration `json:"duration"` // ns
	Audit    Audit         `json:"audit"`
	Cost     Cost          `json:"cost"`
}

func encodeJSON(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding a record: %w", err)
	}
	return b, nil
}
