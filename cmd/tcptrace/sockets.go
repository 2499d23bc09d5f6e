package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/internal/sockets"
	"github.com/tcptrace/tcptrace/tracer/event"
)

func newSockets(u *ui) *cobra.Command {
	var by string
	var all bool
	var top uint64
	cmd := &cobra.Command{
		Use:   "sockets",
		Short: "What exists now: listeners, sockets in groups, use of local ports",
		Long: `Look once at the TCP sockets of all network namespaces, and show what is most
troubling first: listeners with their queues; sockets by state, process and
peer; how much of the local ports is in use towards each destination; and the
kernel's counters that mean trouble (left out where sockets are filtered).
Nothing is traced.

A listener's QUEUE holds connections that wait for accept(); it takes one more
than LIMIT. SET BY tells what made the limit: the backlog argument of listen()
or net.core.somaxconn (which may have changed since). SYN is half-open requests.

IDLE is the time since the last segment was received, the newest and the oldest
of a group: the kernel does not keep how long a socket has been in a state.
REAPED is the silence after which SO_KEEPALIVE ends a connection, "never" where
it is off. A client's peer is where it connected to, a server's is its listener
with the addresses that came in there.`,
		Example: `  sudo tcptrace sockets                        one screen
  sudo tcptrace sockets --state close-wait     who forgets to close
  sudo tcptrace sockets --lport 443 --by peer  who is connected
  sudo tcptrace sockets --all --comm nginx     every socket, as ss does
  sudo tcptrace sockets -o json --all`,
		Args: atMost(0),
	}
	u.outputFlag(cmd)
	flags := cmd.Flags()
	flags.StringVar(&by, "by", "", "group by `WHAT`, of state,process,service,peer (default: all but peer)")
	flags.BoolVar(&all, "all", false, "list every socket")
	flags.Uint64Var(&top, "top", 12, "at most `N` lines of a kind as text, 0 for all")
	complete(cmd, "by", sockets.DimensionNames()...)
	filters := filterFlags(cmd)
	// Nothing has happened to a socket that is merely looked at.
	_ = flags.MarkHidden("code")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if len(filters.Code) > 0 {
			return usage("`tcptrace watch --code` waits for verdicts", "--code: sockets that are merely looked at have no verdicts")
		}
		d, err := sockets.Default, error(nil)
		if cmd.Flags().Changed("by") {
			d, err = sockets.ParseDimensions(by)
		}
		if err != nil {
			hint := "sockets are grouped by " + strings.Join(sockets.DimensionNames(), ", ") + ", or several with commas between"
			if near := filter.Nearest(by, sockets.DimensionNames()); near != "" {
				hint = fmt.Sprintf("did you mean %s? %s", near, hint)
			}
			return usage(hint, "--by %q: %w", by, err)
		}
		f, err := parseFilter(filters)
		if err != nil {
			return err
		}
		return u.sockets(cmd.Context(), sockets.Options{By: d, Filter: f}, all, int(min(top, 1<<30)))
	}
	return cmd
}

// sockets looks once and shows what it saw.
func (u *ui) sockets(ctx context.Context, o sockets.Options, all bool, top int) error {
	if err := permitted(); err != nil {
		return err
	}
	self, err := host.SelfNetns()
	if err != nil {
		return err
	}
	var out render.Sockets
	if u.output == "json" {
		out = render.NewSocketsJSON(u.out, render.Clock{Offset: host.ClockOffset()})
	} else {
		text := render.NewSocketsText(u.out, render.TextOptions{Width: u.width(), Color: u.color(), Location: time.Local, Netns: self.Inode}, top)
		if want := o.Filter.Netns; len(want) == 1 {
			only := event.Namespace{Inode: want[0]}
			if ns, err := host.FindNetns(want[0]); err == nil {
				only.Name = ns.Name
			}
			text.Only(only)
		}
		out = text
	}
	return pipeline.TakeStock(ctx, pipeline.StockConfig{Options: o, Out: out, All: all, Log: u.log})
}
