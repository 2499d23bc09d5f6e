// Package programtest holds the tests with programs that everybody runs (nginx
// under ab, redis-server, clients in Python) on the kernel at hand: what
// tcptrace must say of them, and what it must not.
//
// They need root and the programs that scripts/setup installs, so they are no
// part of the tests under other kernels.
package programtest
