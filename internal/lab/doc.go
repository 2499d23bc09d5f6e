// Package lab reproduces the cases that tcptrace exists for as real traffic:
// real processes with real sockets, in network namespaces that are made for
// one run and thrown away after it. Each case has a healthy twin, the same
// shape of traffic with nothing wrong in it.
//
// A case reports the [Truth]: what the participants did, what happened to
// them, and what the kernel counted meanwhile in those namespaces. The tracer
// is not involved here; its verdict is held against the Truth elsewhere.
//
// The processes of a case are this same executable started again, so main and
// TestMain must call [Main] before anything else. Root is needed (CAP_SYS_ADMIN
// for namespaces, CAP_NET_ADMIN within them) and /proc; nothing else is: no
// shell, no ip(8). Cases with a scripted peer (package peer) also need
// /dev/net/tun.
package lab
