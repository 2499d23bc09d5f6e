// Package probe is the only part of tcptrace that touches the kernel's
// tracing: it decides for each hook how to attach it, loads the programs,
// reads and decodes their events, and reads their counters.
package probe

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// Sentinel errors; Open wraps them.
var (
	ErrNotPermitted = errors.New("not permitted")
	ErrNotSupported = errors.New("not supported by this kernel")
)

// FilterMax is how many values of one kind the kernel side can compare; more
// are filtered in user space only.
const FilterMax = 16

// Filter is evaluated in the kernel. Values of a kind are combined with OR,
// kinds with AND; an empty kind lets everything pass.
type Filter struct {
	Ports, LocalPorts, RemotePorts []uint16
	Addrs                          []netip.Prefix
	Netns                          []uint32
}

// Options of Open. The zero value is fine.
type Options struct {
	Attach   string // auto (or ""), fentry, kprobe, tracepoint
	RingSize int    // bytes, a power of two; 0: 8 MiB
	Filter   Filter
	Log      *zap.Logger // nil: silent
	// Empty attaches programs that return at once: the yardstick of bench.
	Empty bool
}

const defaultRing = 8 << 20

// Probe is a set of attached hooks. Read must not be called concurrently with
// itself; everything else is safe for concurrent use.
type Probe struct {
	log    *zap.Logger
	caps   event.Capabilities
	maps   map[string]*ebpf.Map
	progs  []loaded
	iter   *ebpf.Program
	reader *ringbuf.Reader
	rec    ringbuf.Record

	mu      sync.Mutex // guards links and stopped
	links   []io.Closer
	stopped bool

	inventory sync.Mutex // one iteration at a time
	hz        uint32     // jiffies per second, 0 unknown; guarded by inventory

	symbols symbols
	folded  map[bpfTcptraceFoldKey]uint64 // told so far

	bad uint64 // records that could not be decoded; guarded by mu
}

type loaded struct {
	name   string
	prog   *ebpf.Program
	kprobe link.Link // nil unless it is one that is counted; guarded by mu
	unhit  uint64    // how often the kernel passed it by, as last read; guarded by mu
}

// Open attaches the hooks. What could not be attached is told by
// Capabilities; only a mandatory hook that fails makes Open fail.
func Open(o Options) (*Probe, error) {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	switch o.Attach {
	case "", "auto", viaFentry, viaKprobe, viaTracepoint:
	default:
		return nil, fmt.Errorf("attaching: unknown way %q", o.Attach)
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		o.Log.Debug("raising RLIMIT_MEMLOCK", zap.Error(err))
	}
	cache := btf.NewCache() // decoding BTF is most of the time that starting takes
	spec, err := cache.Kernel()
	if err != nil {
		return nil, fmt.Errorf("reading the kernel's type information (/sys/kernel/btf/vmlinux): %w: %w", err, ErrNotSupported)
	}
	k := &kernel{spec: spec, cache: cache, release: release(), refused: map[string]error{}}
	if !haveKprobes() {
		k.refused[viaKprobe] = errors.New("this kernel has no kprobes")
	}

	p := &Probe{log: o.Log}
	err = withTracefs(func() error { return p.load(k, o) })
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func release() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// load creates the maps, then each hook by the first way that works.
func (p *Probe) load(k *kernel, o Options) error {
	spec, err := loadBpf()
	if err != nil {
		return fmt.Errorf("reading the programs: %w", err)
	}
	if o.RingSize == 0 {
		o.RingSize = defaultRing
	}
	spec.Maps["events"].MaxEntries = uint32(o.RingSize)
	cookie := k.cookies()
	if err := configure(spec, k, o, cookie); err != nil {
		return err
	}

	// Some hooks change what others conclude, so the ways of these are
	// chosen first and the rest is loaded with the answer. Choosing means
	// attaching: presence in BTF is not enough.
	p.maps = map[string]*ebpf.Map{}
	opts := ebpf.CollectionOptions{Cache: k.cache}

	state := make([]event.Hook, len(hooks))
	partial := map[string]string{}
	order := loadOrder()
	for _, i := range order {
		h := &hooks[i]
		if h.concludes {
			if err := p.concludeFrom(spec, state); err != nil {
				return err
			}
		}
		state[i] = event.Hook{Name: h.name, Via: viaNone, Gives: h.gives}
		var why []string
		denied := false // a kernel may refuse fentry alone; that is no lack of privileges
		for _, w := range h.ways {
			err := p.try(k, spec, opts, w, o.Attach)
			if err == nil {
				state[i].Via = w.via
				partial[h.name] = w.partial
				break
			}
			denied = denied || errors.Is(err, unix.EPERM)
			why = append(why, w.via+": "+err.Error())
			o.Log.Debug("attaching", zap.String("hook", h.name), zap.String("via", w.via), zap.Error(err))
		}
		state[i].Why = strings.Join(why, "; ")
		if state[i].Via == viaNone && h.mandatory && denied {
			return fmt.Errorf("attaching %s: %s: %w", h.name, state[i].Why, ErrNotPermitted)
		}
		if state[i].Via == viaNone && h.mandatory {
			return fmt.Errorf("attaching %s: %s: %w", h.name, state[i].Why, ErrNotSupported)
		}
	}
	noInventory := p.loadIterator(spec, opts)
	p.caps = capabilities(k, state, partial, cookie)
	if noInventory != nil {
		p.caps.Unknowable = append(p.caps.Unknowable, fmt.Sprintf("sockets that are older than the start (%v)", noInventory))
	}

	if err := p.makeRoomToFold(); err != nil {
		return err
	}
	p.reader, err = ringbuf.NewReader(p.maps["events"])
	if err != nil {
		return fmt.Errorf("opening the ring buffer: %w", err)
	}
	return nil
}

// loadOrder puts hooks that conclude from the absence of others behind those.
func loadOrder() []int {
	var first, last []int
	for i, h := range hooks {
		if h.concludes {
			last = append(last, i)
		} else {
			first = append(first, i)
		}
	}
	return append(first, last...)
}

// concludeFrom tells the programs that are loaded next what the earlier see.
func (p *Probe) concludeFrom(spec *ebpf.CollectionSpec, state []event.Hook) error {
	for i, h := range hooks {
		var err error
		switch h.name {
		case "tcp_time_wait":
			err = set(spec, "have_time_wait_hook", state[i].Via != viaNone && state[i].Via != "")
		case "tcp_syn_recv_sock":
			err = set(spec, "infer_ack_overflow", state[i].Via == viaNone || state[i].Via == "")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func set(spec *ebpf.CollectionSpec, name string, v any) error {
	s, ok := spec.Variables[name]
	if !ok {
		return fmt.Errorf("configuring the programs: no variable %s", name)
	}
	if err := s.Set(v); err != nil {
		return fmt.Errorf("configuring the programs: setting %s: %w", name, err)
	}
	return nil
}

// configure writes what is known before anything is attached.
func configure(spec *ebpf.CollectionSpec, k *kernel, o Options, cookie bool) error {
	nargs := k.args("inet_csk_accept")
	if nargs < 0 {
		nargs = 4
	}
	cookieArgs := k.args("__cookie_v4_check")
	if cookieArgs < 0 {
		cookieArgs = 2
	}
	if k.tpArgs("kfree_skb") == 2 {
		var err error
		if k.nfHook, err = lookUpSymbol("nf_hook_slow"); err != nil {
			o.Log.Debug("looking for the place of netfilter's drops", zap.Error(err))
		}
	}
	number := func(enum, name string) uint32 {
		if v, ok := k.enum(enum)[name]; ok {
			return uint32(v)
		}
		return math.MaxUint32
	}
	vars := map[string]any{
		"have_cookie":     cookie,
		"have_rst_reason": k.tpArgs("tcp_send_reset") >= 3,
		"have_twins":      cookie,
		"have_task_btf":   k.hasFunc("bpf_get_current_task_btf"),
		// BTF does not show this change, made between 5.10 and 6.1.
		"syn_queue_full_at_limit": before(k.release, 5, 11),
		"accept_nargs":            uint32(nargs),
		"cookie_check_nargs":      uint32(cookieArgs),
		"rst_on_close":            number("sk_rst_reason", "SK_RST_REASON_TCP_ABORT_ON_CLOSE"),
		"rst_on_data":             number("sk_rst_reason", "SK_RST_REASON_TCP_ABORT_ON_DATA"),
		"rst_on_linger":           number("sk_rst_reason", "SK_RST_REASON_TCP_ABORT_ON_LINGER"),
		"drop_paws":               number("skb_drop_reason", "SKB_DROP_REASON_TCP_RFC7323_PAWS"),
		"drop_wanted":             k.wantedDrops(),
		"nf_hook_start":           k.nfHook.start,
		"nf_hook_end":             k.nfHook.end,
		"wakeup_bytes":            uint32(o.RingSize / 4),
		"empty_programs":          o.Empty,
	}
	f := o.Filter
	ports := func(name string, ps []uint16) {
		if len(ps) == 0 || len(ps) > FilterMax {
			return
		}
		var a [FilterMax]uint16
		copy(a[:], ps)
		vars[name] = a
		vars[name+"_n"] = uint32(len(ps))
	}
	ports("filter_port", f.Ports)
	ports("filter_lport", f.LocalPorts)
	ports("filter_rport", f.RemotePorts)
	if n := len(f.Netns); n > 0 && n <= FilterMax {
		var a [FilterMax]uint32
		copy(a[:], f.Netns)
		vars["filter_netns"] = a
		vars["filter_netns_n"] = uint32(n)
	}
	if n := len(f.Addrs); n > 0 && n <= FilterMax {
		var a [FilterMax]bpfCidr
		for i, pfx := range f.Addrs {
			a[i] = cidr(pfx)
		}
		vars["filter_addr"] = a
		vars["filter_addr_n"] = uint32(n)
	}
	for name, v := range vars {
		if err := set(spec, name, v); err != nil {
			return err
		}
	}
	return nil
}

// cidr converts a prefix to the form that the kernel side compares: 128 bits,
// IPv4 as ::ffff:0:0/96.
func cidr(p netip.Prefix) bpfCidr {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	a := p.Addr().As16()
	var c bpfCidr
	for i := range 16 {
		m := byte(0)
		switch n := bits - i*8; {
		case n >= 8:
			m = 0xff
		case n > 0:
			m = byte(0xff << (8 - n))
		}
		shift := 8 * (i % 4)
		c.Mask[i/4] |= uint32(m) << shift
		c.Addr[i/4] |= uint32(a[i]&m) << shift
	}
	return c
}

func version(release string) (major, minor int) {
	parts := strings.SplitN(release, ".", 3)
	if len(parts) < 2 {
		return 0, 0
	}
	major, _ = strconv.Atoi(parts[0])
	digits := len(parts[1]) - len(strings.TrimLeft(parts[1], "0123456789"))
	minor, _ = strconv.Atoi(parts[1][:digits])
	return major, minor
}

// before says whether a kernel is older than a version, or of none that is known.
func before(release string, major, minor int) bool {
	a, b := version(release)
	return a < major || a == major && b < minor
}

// try loads and attaches all programs of one way, or nothing.
func (p *Probe) try(k *kernel, spec *ebpf.CollectionSpec, opts ebpf.CollectionOptions, w way, attach string) error {
	if !allowed(attach, w.via) {
		return fmt.Errorf("excluded by --attach %s", attach)
	}
	if err := w.present(k); err != nil {
		return err
	}
	if err := k.refused[w.via]; err != nil {
		return err
	}
	if w.usable != nil {
		if err := w.usable(k); err != nil {
			return err
		}
	}
	w = w.withTwins(k)
	progs, err := p.loadPrograms(spec, opts, w.progs)
	if w.via == viaFentry && errors.Is(err, unix.EPERM) {
		k.refused[viaFentry] = fmt.Errorf("this kernel refuses fentry programs (lockdown?): %w", unix.EPERM)
		return k.refused[viaFentry]
	}
	if err != nil {
		return short(err)
	}
	var links []link.Link
	for i, name := range w.progs {
		l, err := attachProgram(progs[name], spec.Programs[name], w.targets[i], w.via)
		if err != nil {
			for _, l := range links {
				l.Close()
			}
			for _, pr := range progs {
				pr.Close()
			}
			return short(err)
		}
		links = append(links, l)
	}
	for i, name := range w.progs {
		l := loaded{name: name, prog: progs[name]}
		if w.via == viaKprobe && !strings.Contains(w.targets[i], "/") && countsUnhit(k.release) {
			l.kprobe = links[i]
		}
		p.progs = append(p.progs, l)
		p.links = append(p.links, links[i])
	}
	return nil
}

// loadPrograms loads the named programs, sharing the maps made so far.
func (p *Probe) loadPrograms(spec *ebpf.CollectionSpec, opts ebpf.CollectionOptions, names []string) (map[string]*ebpf.Program, error) {
	sub := &ebpf.CollectionSpec{
		Maps:      spec.Maps,
		Programs:  map[string]*ebpf.ProgramSpec{},
		Variables: spec.Variables,
		Types:     spec.Types,
		ByteOrder: spec.ByteOrder,
	}
	for _, n := range names {
		ps, ok := spec.Programs[n]
		if !ok {
			return nil, fmt.Errorf("no program %s", n)
		}
		sub.Programs[n] = ps
	}
	opts.MapReplacements = map[string]*ebpf.Map{}
	for n, m := range p.maps {
		// Constants differ between hooks, see concludeFrom.
		if !strings.HasPrefix(n, ".rodata") {
			opts.MapReplacements[n] = m
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(sub, opts)
	if err != nil {
		return nil, err
	}
	for n, m := range coll.Maps {
		if _, have := p.maps[n]; !have && !strings.HasPrefix(n, ".rodata") {
			p.maps[n] = m
			delete(coll.Maps, n)
		}
	}
	progs := coll.Programs
	coll.Programs = nil
	coll.Close()
	return progs, nil
}

func attachProgram(prog *ebpf.Program, ps *ebpf.ProgramSpec, target, via string) (link.Link, error) {
	switch {
	case strings.Contains(target, "/"):
		group, name, _ := strings.Cut(target, "/")
		return link.Tracepoint(group, name, prog, nil)
	case via == viaKprobe:
		if strings.HasPrefix(ps.SectionName, "kretprobe/") {
			return link.Kretprobe(target, prog, nil)
		}
		return link.Kprobe(target, prog, nil)
	default:
		return link.AttachTracing(link.TracingOptions{Program: prog})
	}
}

// miss counts the runs of a program that the kernel skipped.
type miss struct {
	name  string
	count uint64
	twin  bool // it has one, which may have stood in
}

// readUnhit asks how often the kernel passed a kprobe by, because it was busy
// with another one on that CPU: an interrupt came in the middle, and all that
// its timers and packets reach goes by.
func (l *loaded) readUnhit() {
	if l.kprobe == nil {
		return
	}
	info, err := l.kprobe.Info()
	if err != nil {
		l.kprobe = nil
		return
	}
	if pe := info.PerfEvent(); pe != nil {
		if k := pe.Kprobe(); k != nil {
			l.unhit = k.Missed
		}
	}
}

// countsUnhit says whether a kernel tells that
// (kernel/trace/trace_kprobe.c: bpf_get_kprobe_info()).
func countsUnhit(release string) bool { return !before(release, 6, 7) }

// missed adds the programs' costs to s and returns their misses. Those of a
// twin do not count: it has nothing to do but where its program was skipped.
func (p *Probe) missed(s *Stats) []miss {
	var out []miss
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.progs {
		l := &p.progs[i]
		l.readUnhit()
		n := l.unhit
		if st, err := l.prog.Stats(); err == nil { // 5.10 counts none, and statistics may be off
			n += st.RecursionMisses
			s.Runtime = append(s.Runtime, Runtime{l.name, st.RunCount, st.Runtime, n})
		}
		if n > 0 && !strings.HasSuffix(l.name, twinSuffix) {
			out = append(out, miss{l.name, n, twins[l.name]})
		}
	}
	return out
}

// short says in a few words why a program could not be loaded or attached.
func short(err error) error {
	for _, e := range []struct {
		is  error
		why string
	}{
		{errNOTSUPP, "this kernel can't attach to a function with so many arguments"},
		{ebpf.ErrNotSupported, "this kernel can't attach to a function with so many arguments"},
		{unix.ENOENT, "not found on this kernel"},
		{unix.EPERM, "not permitted"},
	} {
		if errors.Is(err, e.is) {
			return fmt.Errorf("%s: %w", e.why, e.is)
		}
	}
	return err // a verifier error prints as one line
}

func (p *Probe) loadIterator(spec *ebpf.CollectionSpec, opts ebpf.CollectionOptions) error {
	progs, err := p.loadPrograms(spec, opts, []string{"iter_tcp"})
	if err != nil {
		return fmt.Errorf("loading the socket iterator: %w", short(err))
	}
	p.iter = progs["iter_tcp"]
	return nil
}

// uncounted is what not all kernels tell, see countsUnhit.
const uncounted = "how many events kprobes miss, where an interrupt comes in the middle of one"

func capabilities(k *kernel, state []event.Hook, partial map[string]string, cookie bool) event.Capabilities {
	via := map[string]string{}
	count := map[string]int{}
	for _, h := range state {
		via[h.Name] = h.Via
		count[h.Via]++
	}
	c := event.Capabilities{
		Kernel:      k.release,
		Identity:    event.IdentityAddress,
		Hooks:       state,
		Unknowable:  unknowable(state, partial),
		RSTReasons:  k.rstReasons(),
		DropReasons: k.dropReasons(),

		HasRequestAborts:    via["tcp_check_req"] != viaNone,
		HasBindFailures:     via["inet_csk_get_port"] != viaNone,
		HasProbes:           via["tcp_xmit_probe_skb"] != viaNone,
		HasDrops:            via["kfree_skb"] != viaNone,
		HasDropReasons:      via["kfree_skb"] != viaNone && k.tpArgs("kfree_skb") >= 3,
		HasMemory:           via["tcp_check_oom"] != viaNone,
		HasTimeWaitOverflow: via["inet_twsk_alloc"] != viaNone,

		HasAccept:     via["inet_csk_accept"] != viaNone,
		HasSYNDrops:   via["tcp_conn_request"] != viaNone,
		HasACKDrops:   via["tcp_syn_recv_sock"] != viaNone,
		HasListenArg:  via["listen"] != viaNone,
		HasRSTReason:  k.tpArgs("tcp_send_reset") >= 3,
		HasAllRSTSent: k.tpArgs("tcp_send_reset") >= 3 || via["tcp_send_reset"] != viaTracepoint,
	}
	if cookie {
		c.Identity = event.IdentityCookie
	}
	if count[viaKprobe] > 0 && !countsUnhit(k.release) {
		c.Unknowable = append(c.Unknowable, uncounted)
	}
	switch {
	case count[viaFentry] > 0 && count[viaFentry] >= count[viaKprobe]:
		c.Attach = viaFentry
	case count[viaKprobe] > 0:
		c.Attach = viaKprobe
	default:
		c.Attach = viaTracepoint
	}
	return c
}

// Capabilities tells what the hooks can show.
func (p *Probe) Capabilities() event.Capabilities { return p.caps }

// Read fills batch with decoded events in arrival order. It returns as soon
// as something was read and the ring is empty or the batch full, or when
// timeout has passed; n may be 0. After Stop it drains the ring, then returns
// io.EOF.
func (p *Probe) Read(batch []event.Event, timeout time.Duration) (n int, err error) {
	p.mu.Lock()
	stopped := p.stopped
	p.mu.Unlock()
	if stopped {
		timeout = 0
	}
	deadline := time.Now().Add(timeout)
	for n < len(batch) {
		if n > 0 || stopped {
			if p.reader.AvailableBytes() == 0 {
				break
			}
		}
		p.reader.SetDeadline(deadline)
		err := p.reader.ReadInto(&p.rec)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return n, fmt.Errorf("reading the ring buffer: %w", err)
		}
		location, err := decode(p.rec.RawSample, &batch[n])
		if err != nil {
			p.mu.Lock()
			p.bad++
			p.mu.Unlock()
			continue
		}
		if location != 0 {
			batch[n].Where = p.symbols.name(location)
		}
		n++
	}
	if n == 0 && stopped {
		return 0, io.EOF
	}
	return n, nil
}

// Stop detaches the hooks. Events in the ring can still be read.
func (p *Probe) Stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.progs {
		p.progs[i].readUnhit()
		p.progs[i].kprobe = nil
	}
	for _, l := range p.links {
		if err := l.Close(); err != nil {
			p.log.Debug("detaching", zap.Error(err))
		}
	}
	p.links = nil
	p.stopped = true
}

// Close releases everything. The Probe can't be used afterwards.
func (p *Probe) Close() error {
	p.Stop()
	if p.reader != nil {
		p.reader.Close()
	}
	for _, l := range p.progs {
		l.prog.Close()
	}
	if p.iter != nil {
		p.iter.Close()
	}
	for _, m := range p.maps {
		m.Close()
	}
	return nil
}

// Snapshot calls fn for every TCP socket of the calling thread's network
// namespace. The event and its Inventory are reused between calls. The time
// between sockets is not frozen: a socket may end while others are read.
func (p *Probe) Snapshot(fn func(*event.Event)) error {
	if p.iter == nil {
		return fmt.Errorf("listing sockets: no socket iterator: %w", ErrNotSupported)
	}
	p.inventory.Lock()
	defer p.inventory.Unlock()
	if p.hz == 0 {
		// A minisocket may come before the first socket that tells the rate.
		if err := p.iterate(func(*event.Event) bool { return p.hz == 0 }); err != nil {
			return err
		}
	}
	return p.iterate(func(e *event.Event) bool { fn(e); return true })
}

// iterate calls fn for every socket until it returns false. The caller holds
// p.inventory.
func (p *Probe) iterate(fn func(*event.Event) bool) error {
	it, err := link.AttachIter(link.IterOptions{Program: p.iter})
	if err != nil {
		return fmt.Errorf("listing sockets: attaching the iterator: %w", err)
	}
	defer it.Close()
	rd, err := it.Open()
	if err != nil {
		return fmt.Errorf("listing sockets: opening the iterator: %w", err)
	}
	defer rd.Close()
	buf := make([]byte, 256*socketSize)
	have := 0
	e, inv := new(event.Event), new(event.Inventory)
	for {
		n, err := rd.Read(buf[have:])
		have += n
		whole := have / socketSize * socketSize
		for off := 0; off < whole; off += socketSize {
			e.Inventory = inv
			if decodeSocket(buf[off:off+socketSize], &p.hz, e) == nil && !fn(e) {
				return nil
			}
		}
		have = copy(buf, buf[whole:have])
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("listing sockets: %w", err)
		}
	}
}

// tickRate returns jiffies per second, 0 if unknown. The kernel does not say it
// outright (the ticks that user space sees are others), but it keeps this
// sysctl in jiffies and shows it in seconds.
func tickRate(jiffies uint32) uint32 {
	b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_keepalive_time")
	if err != nil {
		return 0
	}
	s, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
	if err != nil || s == 0 {
		return 0
	}
	return jiffies / uint32(s)
}

// Stats are counters since Open.
type Stats struct {
	Lost    map[string]uint64 // by cause: ring, map, memory, decode
	Audit   map[AuditKey]uint64
	Runtime []Runtime
}

// AuditKey names one of the kernel's counters in one namespace.
type AuditKey struct {
	Netns   uint32
	Counter string // as in nstat, without its family: ListenOverflows
}

// Runtime is the cost of one program, where kernel.bpf_stats_enabled is on.
type Runtime struct {
	Program string
	Runs    uint64
	Time    time.Duration
	Missed  uint64 // runs skipped because the program, or another kprobe, was running already
}

var auditNames = [...]string{
	bpfTcptraceAuditAUDIT_LISTEN_OVERFLOWS: "ListenOverflows",
	bpfTcptraceAuditAUDIT_LISTEN_DROPS:     "ListenDrops",
	bpfTcptraceAuditAUDIT_OUT_RSTS:         "OutRsts",
	bpfTcptraceAuditAUDIT_ESTAB_RESETS:     "EstabResets",
	bpfTcptraceAuditAUDIT_ATTEMPT_FAILS:    "AttemptFails",

	bpfTcptraceAuditAUDIT_ACTIVE_OPENS:      "ActiveOpens",
	bpfTcptraceAuditAUDIT_PASSIVE_OPENS:     "PassiveOpens",
	bpfTcptraceAuditAUDIT_RETRANS_SEGS:      "RetransSegs",
	bpfTcptraceAuditAUDIT_SYN_RETRANS:       "TCPSynRetrans",
	bpfTcptraceAuditAUDIT_TIMEOUTS:          "TCPTimeouts",
	bpfTcptraceAuditAUDIT_REQQ_FULL_DROP:    "TCPReqQFullDrop",
	bpfTcptraceAuditAUDIT_REQQ_FULL_COOKIES: "TCPReqQFullDoCookies",
	bpfTcptraceAuditAUDIT_COOKIES_SENT:      "SyncookiesSent",
	bpfTcptraceAuditAUDIT_COOKIES_RECV:      "SyncookiesRecv",
	bpfTcptraceAuditAUDIT_COOKIES_FAILED:    "SyncookiesFailed",
	bpfTcptraceAuditAUDIT_EMBRYONIC_RSTS:    "EmbryonicRsts",
	bpfTcptraceAuditAUDIT_ABORT_ON_TIMEOUT:  "TCPAbortOnTimeout",
	bpfTcptraceAuditAUDIT_ABORT_ON_CLOSE:    "TCPAbortOnClose",
	bpfTcptraceAuditAUDIT_ABORT_ON_DATA:     "TCPAbortOnData",
	bpfTcptraceAuditAUDIT_ABORT_ON_LINGER:   "TCPAbortOnLinger",
	bpfTcptraceAuditAUDIT_ABORT_ON_MEMORY:   "TCPAbortOnMemory",
	bpfTcptraceAuditAUDIT_TW_OVERFLOW:       "TCPTimeWaitOverflow",
	bpfTcptraceAuditAUDIT_TW_RECYCLED:       "TWRecycled",
	bpfTcptraceAuditAUDIT_KEEPALIVE:         "TCPKeepAlive",
	bpfTcptraceAuditAUDIT_WIN_PROBE:         "TCPWinProbe",
	bpfTcptraceAuditAUDIT_PAWS_ESTAB:        "PAWSEstab",
}

// Stats reads the counters of the programs.
func (p *Probe) Stats() (Stats, error) {
	s := Stats{Lost: map[string]uint64{}, Audit: map[AuditKey]uint64{}}
	causes := []string{
		bpfTcptraceLostLOST_RING_FULL:  "ring",
		bpfTcptraceLostLOST_MAP_FULL:   "map",
		bpfTcptraceLostLOST_UNREADABLE: "memory",
	}
	for i, name := range causes {
		var per []uint64
		if err := p.maps["lost"].Lookup(uint32(i), &per); err != nil {
			return s, fmt.Errorf("reading lost events: %w", err)
		}
		for _, n := range per {
			s.Lost[name] += n
		}
	}
	p.mu.Lock()
	s.Lost["decode"] = p.bad
	p.mu.Unlock()

	var netns uint32
	var counts bpfAuditCounts
	missed := p.missed(&s)
	it := p.maps["audit"].Iterate()
	for it.Next(&netns, &counts) {
		for i, n := range counts.Count {
			s.Audit[AuditKey{netns, auditNames[i]}] = n
		}
	}
	if err := it.Err(); err != nil {
		return s, fmt.Errorf("reading audit counts: %w", err)
	}
	// Read after the misses, so that no stand-in is still to come for one.
	var stoodIn, per = uint64(0), []uint64(nil)
	if err := p.maps["lost"].Lookup(uint32(bpfTcptraceLostLOST_STOOD_IN), &per); err != nil {
		return s, fmt.Errorf("reading lost events: %w", err)
	}
	for _, n := range per {
		stoodIn += n
	}
	for _, m := range missed {
		n := m.count
		if m.twin {
			saved := min(n, stoodIn)
			n, stoodIn = n-saved, stoodIn-saved
		}
		if n > 0 {
			s.Lost["missed "+m.name] += n
		}
	}
	return s, nil
}
