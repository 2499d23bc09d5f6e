// Package timeline turns the stream of events into connections, each with its
// timeline.
//
// It is pure: no kernel, no files, no clock. Time enters as a value, events
// never make it fail or panic, memory is bounded by [Options], and the same
// events give the same connections and the same calls to the [Observer].
//
// A connection is keyed by the identity of its socket (the kernel's cookie, or
// the socket's address together with a generation that each birth advances)
// and its network namespace, never by the address tuple alone. It begins with
// the request phase before the full socket exists and ends with the
// minisocket that holds TIME_WAIT after it is gone. What was not seen is
// absent from the timeline.
//
// A [Tracker] and everything it hands out belong to one goroutine. All times
// are CLOCK_BOOTTIME in nanoseconds, 0 meaning unknown.
package timeline
