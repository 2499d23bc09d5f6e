package probe

// The compiler is pinned: regeneration is checked byte by byte, and another
// version of clang gives other bytes.
//go:generate go tool bpf2go -cc clang-14 -cflags "-O2 -g -mcpu=v3 -Wall -Werror -Wno-unused-function -fdebug-prefix-map=../../bpf=bpf" -target amd64,arm64 -type tcptrace_kind -type tcptrace_flag -type tcptrace_lost -type tcptrace_audit -type tcptrace_traffic -type tcptrace_listener -type tcptrace_drop -type tcptrace_event -type tcptrace_socket bpf ../../bpf/tcptrace.bpf.c
