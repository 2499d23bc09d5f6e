package pipeline

import (
	"fmt"
	"io"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// by is a connect() of a process that was refused.
func by(netns, pid uint32, at int64) []event.Event {
	list := refused(netns, uint64(pid), 40000+uint16(pid%1000), at)
	list[0].PID = pid
	return list
}

// TestCrewOfOneNamespace: processes of one name have one trouble in one
// namespace. Those of namespaces that had its number one after the other have
// nothing in common, nor have those of one that was never found.
func TestCrewOfOneNamespace(t *testing.T) {
	const second = 1_000_000_000
	blank := event.Namespace{Inode: 5}
	known := event.Namespace{Inode: 5, Known: true}
	for _, c := range []struct {
		name   string
		told   [3][]event.Namespace // before each process
		counts []uint64
	}{
		{"one", [3][]event.Namespace{{known}}, []uint64{3}},
		{"its settings changed", [3][]event.Namespace{{blank, known}, {known}}, []uint64{3}},
		{"another one after the first", [3][]event.Namespace{{known}, {blank, known}}, []uint64{1, 2}},
		{"three", [3][]event.Namespace{{known}, {blank, known}, {blank, known}}, []uint64{1, 1, 1}},
		{"never found", [3][]event.Namespace{{blank}}, []uint64{1, 1, 1}},
		{"found late", [3][]event.Namespace{{blank}, {known}}, []uint64{1, 2}},
		{"never told of", [3][]event.Namespace{}, []uint64{1, 1, 1}},
	} {
		m := NewMachine(Options{Out: render.NewJSON(io.Discard), Show: Show{Verdicts: true}})
		for i, told := range c.told {
			for _, ns := range told {
				m.Namespace(ns)
			}
			at := int64(i+1) * second
			for _, e := range by(5, uint32(901+i), at) {
				m.Event(&e)
			}
			m.Advance(at + second/2)
		}
		sum, err := m.Finish(10*second, render.Summary{})
		require.NoError(t, err)
		var counts []uint64
		for _, v := range sum.Final {
			counts = append(counts, v.Verdict.Count)
		}
		assert.Equal(t, c.counts, counts, c.name)
	}
}

// TestNamespaceRenewed: that a namespace is another one than that of its number
// before shows with the first process in it, and so does that it is not.
func TestNamespaceRenewed(t *testing.T) {
	space := namespace(t)
	inode := space.Inode()
	var sleep *exec.Cmd
	require.NoError(t, space.Do(func() error {
		sleep = exec.Command("sleep", "60")
		return sleep.Start()
	}))
	defer func() { _ = sleep.Process.Kill(); _ = sleep.Wait() }()

	l := alive(&fake{})
	told := &namespaces{Renderer: l.Out}
	l.m = NewMachine(Options{Out: told})
	l.in, l.owners = l.m, true
	news := func() (known []bool) {
		for _, ns := range told.told {
			assert.Equal(t, inode, ns.Inode)
			known = append(known, ns.Known)
		}
		told.told = nil
		return known
	}
	l.handle(by(inode, 901, host.Now()))
	s := l.spaces[inode]
	require.True(t, s != nil && s.known)
	assert.Equal(t, []bool{false, true}, news())
	if s.cookie == 0 {
		p, err := host.ReadPrivileges()
		require.NoError(t, err)
		require.True(t, p.Before(5, 14), "SO_NETNS_COOKIE")
		t.Skip("this kernel does not tell namespaces apart")
	}
	l.handle(by(inode, 902, host.Now()))
	assert.Empty(t, news(), "the same one")

	l.spaces[inode].cookie++ // as if it had been another one then
	l.handle(by(inode, 903, host.Now()))
	assert.Equal(t, []bool{false, true}, news())
	assert.Equal(t, s.cookie-1, l.spaces[inode].cookie)
	assert.Contains(t, l.pending, inode)

	l.spaces[inode].ns.Path = "/no/such/path" // a process that has ended
	pid := uint32(sleep.Process.Pid)
	l.handle(by(inode, pid, host.Now()))
	assert.Empty(t, news(), "the same one, by another way")
	assert.Equal(t, fmt.Sprintf("/proc/%d/ns/net", pid), l.spaces[inode].ns.Path)

	l.spaces[inode].ns.Path = "/no/such/path"
	const ended = 1 << 30 // more than there are
	l.handle(by(inode, ended, host.Now()))
	l.handle(by(inode, ended+1, host.Now()))
	assert.Equal(t, []bool{false}, news(), "nothing is known of it")
	assert.True(t, l.spaces[inode].missing)
	l.search = 0
	l.retry()
	assert.Equal(t, []bool{true}, news(), "it is found again")

	// One that was asked for, and is another's now.
	l.limit = map[uint32]bool{inode: true}
	l.spaces[inode].cookie++
	l.audit.spaces[inode].first.cookie++
	events := l.m.events
	l.handle(by(inode, 904, host.Now()))
	assert.Equal(t, events, l.m.events)
	assert.False(t, l.limit[inode])
}
