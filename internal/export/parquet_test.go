package export_test

import (
	"bytes"
	"runtime"
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

// peak is the most memory in use at any moment at which something was written.
type peak struct{ most uint64 }

func (p *peak) Write(b []byte) (int, error) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	p.most = max(p.most, m.HeapInuse)
	return len(b), nil
}

// The memory is that of the row groups at hand, however many there were.
func TestParquetMemoryIsBounded(t *testing.T) {
	measure := func(n int) uint64 {
		runtime.GC()
		var p peak
		sink := export.NewParquet(&p, &p, &p)
		require.NoError(t, sample.Feed(sink, n, false))
		require.NoError(t, sink.Close())
		return p.most
	}
	few, many := measure(20_000), measure(80_000)
	t.Logf("%d MB, and %d MB for four times as many", few>>20, many>>20)
	require.Less(t, many, few*2)
	require.Less(t, many, uint64(200<<20))
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
