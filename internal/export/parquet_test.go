package export_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/parquet-go/parquet-go"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/export"
	"github.com/tcptrace/tcptrace/internal/export/sample"
)

func open(t *testing.T, b *bytes.Buffer) *parquet.File {
	t.Helper()
	f, err := parquet.OpenFile(bytes.NewReader(b.Bytes()), int64(b.Len()))
	require.NoError(t, err)
	return f
}

// What the tables hold is looked at with DuckDB, in package readback.
func TestParquet(t *testing.T) {
	for _, cut := range []bool{false, true} {
		const n = 300
		var events, connections, verdicts bytes.Buffer
		sink := export.NewParquet(&events, &connections, &verdicts)
		require.NoError(t, sample.Feed(sink, n, cut))
		require.NoError(t, sink.Flush())
		require.NoError(t, sink.Close())
		require.Equal(t, int64(2*(n*sample.EventsEach+sample.OtherEvents)), open(t, &events).NumRows())
		require.Equal(t, int64(2*n), open(t, &connections).NumRows())
		require.Equal(t, int64(2*sample.Verdicts), open(t, &verdicts).NumRows())
		runs, ok := open(t, &verdicts).Lookup("tcptrace.runs")
		require.True(t, ok)
		require.Contains(t, runs, `"host":"db-1"`)
		require.Contains(t, runs, `"lost":{"ring":12}`)
		require.Equal(t, cut, bytes.Contains([]byte(runs), []byte(`"whole":false`)))
	}
}

func TestParquetOfNothing(t *testing.T) {
	var events, connections, verdicts bytes.Buffer
	require.NoError(t, export.NewParquet(&events, &connections, &verdicts).Close())
	for _, b := range []*bytes.Buffer{&events, &connections, &verdicts} {
		require.Zero(t, open(t, b).NumRows())
	}
}

// counter counts what was written so far.
type counter struct{ n int }

func (c *counter) Write(b []byte) (int, error) {
	c.n += len(b)
	return len(b), nil
}

// Row groups are written as they are full, so that memory is bounded however
// many there are.
func TestParquetWritesAsItGoes(t *testing.T) {
	var events, connections counter
	sink := export.NewParquet(&events, &connections, io.Discard)
	require.NoError(t, sample.Feed(sink, 7_000, false)) // one group of events, and of connections, and a bit
	written := [2]int{events.n, connections.n}
	require.NoError(t, sink.Close())
	require.Greater(t, written[0], events.n/2)
	require.Greater(t, written[1], connections.n/3)
}

func BenchmarkParquetEvents(b *testing.B) {
	for b.Loop() {
		sink := export.NewParquet(discard{}, discard{}, discard{})
		if err := sample.Feed(sink, 20_000, false); err != nil {
			b.Fatal(err)
		}
		if err := sink.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*2*(20_000*sample.EventsEach)), "ns/event")
}

func BenchmarkPerfetto(b *testing.B) {
	for b.Loop() {
		sink := export.NewPerfetto(discard{})
		if err := sample.Feed(sink, 20_000, false); err != nil {
			b.Fatal(err)
		}
		if err := sink.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*2*20_000), "ns/connection")
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
