package export_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/export"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	tcp "github.com/tcptrace/tcptrace/tracer/event"
)

// replay gives a dump of real traffic to a sink.
func replay(t *testing.T, path string, sink export.Sink, show pipeline.Show, raw bool) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	r, err := dump.NewReader(f)
	require.NoError(t, err)
	list, twice := pipeline.Recordings([]pipeline.Part{{Name: path, Reader: r}})
	require.Empty(t, twice)
	sink.Capabilities(r.Header().Capabilities)
	o := pipeline.Options{Out: sink, Show: show}
	if raw {
		o.Raw = sink.Raw
	}
	_, err = pipeline.Replay(context.Background(), pipeline.ReplayConfig{Options: o}, list[0])
	require.NoError(t, err)
	require.NoError(t, sink.Close())
}

// Of recordings of real traffic all forms tell the same.
func TestRecordings(t *testing.T) {
	dumps, err := filepath.Glob("../pipeline/testdata/*/*.tcpt")
	require.NoError(t, err)
	require.NotEmpty(t, dumps)
	for _, path := range dumps {
		t.Run(filepath.Base(path), func(t *testing.T) {
			var lines bytes.Buffer
			replay(t, path, export.NewJSON(&lines), pipeline.Show{Verdicts: true, Connections: true, Events: true, All: true, Open: true}, false)
			type connection struct {
				Type, Conn, Story string
				Timeline          []any
				Events            int64
			}
			connections, entries, kernel := map[string]string{}, 0, int64(0)
			for dec := json.NewDecoder(&lines); dec.More(); {
				var c connection
				require.NoError(t, dec.Decode(&c))
				switch c.Type {
				case "connection":
					connections[c.Conn] = c.Story
					entries += len(c.Timeline)
				case "summary":
					kernel = c.Events
				}
			}
			require.NotEmpty(t, connections)

			show := pipeline.Show{Verdicts: true, Connections: true, All: true, Open: true}
			var trace bytes.Buffer
			replay(t, path, export.NewPerfetto(&trace), show, true)
			events := checkTrace(t, trace.Bytes())
			drawn, states := map[string]string{}, 0
			for _, e := range events["X"] {
				switch e.Cat {
				case "connection":
					drawn[e.Args["conn"].(string)] = e.Name
				case "state":
					states++
				}
			}
			require.Equal(t, connections, drawn)
			require.NotZero(t, states)
			instants := 0
			for _, e := range events["i"] {
				if e.Cat == "timeline" {
					instants++
				}
			}
			require.Equal(t, entries, instants)

			var tables [3]bytes.Buffer
			replay(t, path, export.NewParquet(&tables[0], &tables[1], &tables[2]), show, true)
			require.Equal(t, kernel, open(t, &tables[0]).NumRows())
			require.Equal(t, int64(len(connections)), open(t, &tables[1]).NumRows())
		})
	}
}

// Nothing that a kernel event can be makes a sink fail.
func FuzzRaw(f *testing.F) {
	f.Add(uint8(1), uint8(7), uint8(2), uint16(1<<14), uint32(11), uint16(110), []byte("nginx"), []byte{10, 0, 0, 1})
	f.Add(uint8(255), uint8(255), uint8(255), uint16(0xffff), uint32(1<<31), uint16(0xffff), []byte("\xff\x00\x1b"), []byte{})
	f.Fuzz(func(t *testing.T, kind, old, now uint8, flags uint16, reason uint32, errno uint16, text, addr []byte) {
		e := tcp.Event{Time: 5, Sock: uint64(reason), Kind: tcp.Kind(kind), Old: tcp.State(old), New: tcp.State(now), Flags: tcp.Flags(flags),
			Reason: reason, Err: errno, TCPFlags: kind, Where: string(text), Count: reason}
		copy(e.Comm[:], text)
		if a, ok := netip.AddrFromSlice(addr); ok {
			e.Local, e.Remote = netip.AddrPortFrom(a, errno), netip.AddrPortFrom(a, errno)
		}
		e.Listener.Backlog, e.Traffic.Unread = reason, reason
		var b bytes.Buffer
		perfetto := export.NewPerfetto(&b)
		perfetto.Raw(&e, 7, string(addr))
		require.NoError(t, perfetto.Close())
		checkTrace(t, b.Bytes())
		var tables [3]bytes.Buffer
		parquet := export.NewParquet(&tables[0], &tables[1], &tables[2])
		parquet.Capabilities(tcp.Capabilities{RSTReasons: map[uint32]string{reason: string(text)}, DropReasons: map[uint32]string{reason: string(text)}})
		parquet.Raw(&e, 7, "")
		require.NoError(t, parquet.Close())
		want := int64(1)
		if e.Kind == tcp.KindSnapshot {
			want = 0
		}
		require.Equal(t, want, open(t, &tables[0]).NumRows())
	})
}
