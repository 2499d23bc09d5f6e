package timeline

import "strconv"

// Linux errnos of sk_err, the same on all its architectures.
const (
	errPipe         = 32
	errAddrNotAvail = 99
	errConnAborted  = 103
	errConnReset    = 104
	errTimedOut     = 110
	errConnRefused  = 111
)

var errnoNames = map[uint16][2]string{
	1:               {"EPERM", "operation not permitted"},
	12:              {"ENOMEM", "out of memory"},
	13:              {"EACCES", "permission denied"},
	errPipe:         {"EPIPE", "broken pipe"},
	71:              {"EPROTO", "protocol error"},
	90:              {"EMSGSIZE", "message too long"},
	92:              {"ENOPROTOOPT", "protocol not available"},
	errAddrNotAvail: {"EADDRNOTAVAIL", "cannot assign requested address"},
	100:             {"ENETDOWN", "network is down"},
	101:             {"ENETUNREACH", "network is unreachable"},
	errConnAborted:  {"ECONNABORTED", "connection aborted"},
	errConnReset:    {"ECONNRESET", "connection reset by peer"},
	105:             {"ENOBUFS", "no buffer space available"},
	errTimedOut:     {"ETIMEDOUT", "connection timed out"},
	errConnRefused:  {"ECONNREFUSED", "connection refused"},
	112:             {"EHOSTDOWN", "host is down"},
	113:             {"EHOSTUNREACH", "no route to host"},
}

// Errno names a Linux errno, such as "ETIMEDOUT".
func Errno(n uint16) string {
	if x, ok := errnoNames[n]; ok {
		return x[0]
	}
	return "errno " + strconv.Itoa(int(n))
}

// ErrnoText says what a Linux errno means, "" if it is not one of TCP's.
func ErrnoText(n uint16) string { return errnoNames[n][1] }
