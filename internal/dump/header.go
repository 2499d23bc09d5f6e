package dump

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
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
	// Netns is the network namespace of who recorded.
	Netns uint32 `json:"netns,omitempty"`
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

// checkFormat reports a version that cannot be read.
func checkFormat(version int) error {
	if version > Format {
		return fmt.Errorf("its format is version %d, and this tcptrace reads up to version %d: %w", version, Format, ErrNewer)
	}
	if version < 1 {
		return errors.New("it names no version of the format")
	}
	return nil
}

// check reports what a reader cannot live with.
func (h *Header) check() error {
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
			return fmt.Errorf("it has %d fields in group %s, more than %d", len(g.have), g.name, maxFields)
		}
		for i := range min(len(g.have), len(g.want)) {
			if g.have[i] != g.want[i] {
				return fmt.Errorf("field %d of group %s is %q, not %q", i, g.name, g.have[i], g.want[i])
			}
		}
	}
	// A shape says what follows it.
	if len(h.Layout.Shape) < len(layout.Shape) {
		return fmt.Errorf("it has %d fields in group shape, fewer than %d", len(h.Layout.Shape), len(layout.Shape))
	}
	return nil
}

// Bounds of what a header has for people, which is shown again and again: texts
// in bytes, lists in entries.
const (
	maxWord     = 256
	maxName     = 128 // of a reason or a hook
	maxSentence = 1 << 10
	maxHooks    = 256 // and sentences
	maxReasons  = 1024
)

// bound cuts what a header from elsewhere has for people.
func (h *Header) bound() {
	c := &h.Capabilities
	for _, s := range []*string{&h.Tool, &h.Host, &h.Kernel, &h.BootID, &c.Kernel, &c.Attach, &c.Identity} {
		*s = cut(*s, maxWord)
	}
	if h.Window != nil {
		h.Window.Trigger = cut(h.Window.Trigger, maxWord)
	}
	c.Hooks = c.Hooks[:min(len(c.Hooks), maxHooks)]
	for i := range c.Hooks {
		k := &c.Hooks[i]
		k.Name, k.Via = cut(k.Name, maxName), cut(k.Via, maxName)
		k.Gives, k.Why = cut(k.Gives, maxSentence), cut(k.Why, maxSentence)
	}
	c.Unknowable = c.Unknowable[:min(len(c.Unknowable), maxHooks)]
	for i, s := range c.Unknowable {
		c.Unknowable[i] = cut(s, maxSentence)
	}
	for _, names := range []map[uint32]string{c.RSTReasons, c.DropReasons} {
		for i, number := range slices.Sorted(maps.Keys(names)) {
			if i < maxReasons {
				names[number] = cut(names[number], maxName)
			} else {
				delete(names, number)
			}
		}
	}
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

// Bounds of a record that is JSON, so that it cannot grow much when it is read.
const (
	maxJSON    = 1 << 20 // bytes
	maxObjects = 1 << 14 // objects and arrays
	maxValues  = 1 << 17
	maxDepth   = 32
)

var errJSON = errors.New("it is too big")

// encodeJSON returns what checkJSON may still find too big.
func encodeJSON(v any) ([]byte, error) { return json.Marshal(v) }

// checkJSON reports whether a record is within the bounds. It does not look
// whether it is JSON.
func checkJSON(raw []byte) error {
	if len(raw) > maxJSON {
		return fmt.Errorf("%w: %d bytes, more than %d", errJSON, len(raw), maxJSON)
	}
	depth, objects, values := 0, 0, 0
	for i := 0; i < len(raw); i++ {
		switch raw[i] {
		case '"':
			for i++; i < len(raw) && raw[i] != '"'; i++ {
				if raw[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			depth++
			objects++
		case '}', ']':
			depth--
		case ',':
			values++
		}
		if depth > maxDepth || objects > maxObjects || values > maxValues {
			return fmt.Errorf("%w: more than %d levels, %d objects or %d values", errJSON, maxDepth, maxObjects, maxValues)
		}
	}
	return nil
}

func decodeJSON(raw []byte, to any) error {
	if err := checkJSON(raw); err != nil {
		return err
	}
	return json.Unmarshal(raw, to)
}

// leftOut is the note of an audit that was too long.
const leftOut = "not kept, because there were too many: the counters of further network namespaces"

// halve leaves out the second half of an audit, and reports whether there was
// something to leave out. The slices stay as they are for others.
func (a *Audit) halve() bool {
	switch {
	case len(a.Lines) > 0:
		a.Lines = a.Lines[:len(a.Lines)/2]
		if !slices.Contains(a.Notes, leftOut) {
			a.Notes = append(slices.Clip(a.Notes), leftOut)
		}
	case len(a.Notes) > 1:
		a.Notes = []string{leftOut}
	default:
		return false
	}
	return true
}
