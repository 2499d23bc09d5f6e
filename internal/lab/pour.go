package lab

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

type pourArgs struct {
	FDs   []int
	Most  int           // bytes on each connection at most
	Quiet time.Duration // a connection that takes nothing for so long is stuck
}

type poured struct {
	Wrote int
	Stuck bool // it took no more
	Errno unix.Errno
}

// pour writes on every connection in turn until it has Most bytes or is stuck.
func (p *participant) pour(args pourArgs) (any, error) {
	results := make([]poured, len(args.FDs))
	buf := make([]byte, 16<<10)
	for i, fd := range args.FDs {
		r := &results[i]
		for r.Wrote < args.Most {
			n, err := unix.SendmsgN(fd, buf[:min(len(buf), args.Most-r.Wrote)], nil, nil, unix.MSG_NOSIGNAL)
			switch err {
			case nil:
				r.Wrote += n
				continue
			case unix.EINTR:
				continue
			case unix.EAGAIN:
				err = await(fd, unix.POLLOUT, time.Now().Add(args.Quiet))
			}
			if errors.Is(err, errWaited) {
				r.Stuck = true
				break
			}
			if r.Errno = errnoOf(err); r.Errno != 0 {
				break
			}
		}
	}
	return results, nil
}
