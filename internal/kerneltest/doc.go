// Package kerneltest holds the tests that need a kernel: real sockets in
// namespaces of their own, traced by the whole of tcptrace, and what it says
// held against what the participants and the kernel's own counters know.
//
// They run on the kernel at hand and, by scripts/vm, on those of the matrix.
// TCPTRACE_ATTACH chooses the way to attach.
package kerneltest
