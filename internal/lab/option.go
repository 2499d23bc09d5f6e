package lab

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// The verb by which a socket's own timers are set. Those of a listener are
// inherited by the connections that it accepts.

type optionArgs struct {
	FDs         []int
	KeepAlive   bool
	Idle        time.Duration // with KeepAlive: before the first probe; whole seconds, 0: the namespace's
	Interval    time.Duration // between probes; the same
	Probes      int           // that may go unanswered; 0: the namespace's
	UserTimeout time.Duration // TCP_USER_TIMEOUT, 0: none
}

func (p *participant) option(args optionArgs) (any, error) {
	type option struct{ level, name, value int }
	var options []option
	if args.KeepAlive {
		options = append(options, option{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1})
	}
	for _, o := range []option{
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(args.Idle / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(args.Interval / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, args.Probes},
		{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(args.UserTimeout / time.Millisecond)},
	} {
		if o.value != 0 {
			options = append(options, o)
		}
	}
	for _, fd := range args.FDs {
		for _, o := range options {
			if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
				return nil, fmt.Errorf("setting socket option %d of level %d: %w", o.name, o.level, err)
			}
		}
	}
	return nil, nil
}

// quickKeepalive notices within about 3 s that a peer is gone: that is what
// takes hours with the kernel's defaults.
func quickKeepalive(fds ...int) optionArgs {
	return optionArgs{FDs: fds, KeepAlive: true, Idle: time.Second, Interval: time.Second, Probes: quickProbes}
}

const quickProbes = 2
