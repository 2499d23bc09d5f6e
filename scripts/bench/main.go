// Command bench measures what tcptrace costs, as ratios within one run, since
// absolute times mean little on a shared machine. Needs root; all traffic is
// on the loopback device of network namespaces that it makes itself.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"

	"github.com/spf13/pflag"

	"github.com/tcptrace/tcptrace/internal/lab"
)

func main() {
	lab.Main()
	conns := pflag.Int("connections", 20000, "short connections in each measured stretch")
	rounds := pflag.Int("rounds", 3, "stretches of each kind, taken in turn; the median counts")
	attach := pflag.String("attach", "auto", "auto, fentry, kprobe or tracepoint")
	only := pflag.StringSlice("only", nil, "parts to run: kernel, start, rate, live, pipeline, record, replay (default all)")
	pflag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	b := bench{ctx: ctx, connections: *conns, rounds: *rounds, attach: *attach}
	parts := []struct {
		name string
		run  func() error
	}{
		{"kernel", b.kernelCost},
		{"start", b.start},
		{"rate", b.rate},
		{"live", b.live},
		{"pipeline", b.pipeline},
		{"record", b.record},
		{"replay", b.replay},
	}
	failed := false
	defer func() {
		for _, f := range b.cleanup {
			f()
		}
		if failed {
			os.Exit(1)
		}
	}()
	for _, p := range parts {
		if len(*only) > 0 && !slices.Contains(*only, p.name) {
			continue
		}
		if err := p.run(); err != nil {
			fmt.Fprintf(os.Stderr, "error: %s: %v\n", p.name, err)
			failed = true
		}
	}
}
