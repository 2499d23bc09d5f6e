package pipeline

import (
	"io"
	"math"
	"time"

	"go.uber.org/zap"

	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/internal/render"
)

// costs measures what tracing takes from the machine. The kernel's statistics
// of BPF programs cost something themselves, so they are kept all the time
// only at first and then for a sample of it.
type costs struct {
	tracer Tracer
	log    *zap.Logger

	began   int64
	cpu     time.Duration // processor time of this process at the beginning
	window  io.Closer     // nil while statistics are off
	opened  int64         // the window's begin
	runtime time.Duration // of all programs then
	events  uint64        // seen by then

	sampled       time.Duration // kernel time within windows
	sampledEvents uint64
	sampledWall   time.Duration
}

const (
	sampleAlways = 10 * time.Second // from the beginning
	sampleEvery  = 10 * time.Second // a window of one round of housekeeping
)

func newCosts(t Tracer, log *zap.Logger) *costs {
	c := &costs{tracer: t, log: log, began: host.Now()}
	c.cpu, _, _ = host.Usage()
	c.open(c.began, 0)
	return c
}

func (c *costs) total() time.Duration {
	stats, err := c.tracer.Stats()
	if err != nil {
		return c.runtime
	}
	var sum time.Duration
	for _, r := range stats.Runtime {
		sum += r.Time
	}
	return sum
}

func (c *costs) open(now int64, events uint64) {
	window, err := host.MeasureBPF()
	if err != nil {
		c.log.Debug("the kernel time of the programs is not measured", zap.Error(err))
		return
	}
	c.window, c.opened, c.events, c.runtime = window, now, events, c.total()
}

func (c *costs) shut(now int64, events uint64) {
	if c.window == nil {
		return
	}
	c.sampled += c.total() - c.runtime
	c.sampledEvents += events - c.events
	c.sampledWall += time.Duration(now - c.opened)
	c.close()
}

func (c *costs) close() {
	if c.window != nil {
		c.window.Close()
		c.window = nil
	}
}

// tick opens and shuts the windows.
func (c *costs) tick(now int64, events uint64) {
	switch age := time.Duration(now - c.began); {
	case c.window == nil && age%sampleEvery < housekeeping:
		c.open(now, events)
	case c.window != nil && age > sampleAlways:
		c.shut(now, events)
	}
}

// end returns what was measured.
func (c *costs) end(now int64, events uint64) render.Cost {
	c.shut(now, events)
	var out render.Cost
	out.BPFKnown = c.sampledWall > 0
	if c.sampledEvents > 0 {
		out.BPFNanosPerEvent = round(float64(c.sampled)/float64(c.sampledEvents), 10)
	}
	if c.sampledWall > 0 {
		out.BPFCPUPercent = round(100*float64(c.sampled)/float64(c.sampledWall), 1e4)
	}
	cpu, rss, err := host.Usage()
	if err == nil && now > c.began {
		out.UserCPUPercent = round(100*float64(cpu-c.cpu)/float64(now-c.began), 1e4)
		out.RSSBytes = rss
	}
	return out
}

// round keeps as many decimals as were measured.
func round(v, scale float64) float64 { return math.Round(v*scale) / scale }
