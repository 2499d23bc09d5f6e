package export_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/export"
	"github.com/tcptrace/tcptrace/internal/export/sample"
	"github.com/tcptrace/tcptrace/internal/pipeline"
)

// viewer opens traces in the trace viewer of chrome://tracing, which Go brings
// along for its own traces.
func viewer(t *testing.T) (read func(trace []byte) imported) {
	t.Helper()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	require.NoError(t, err)
	static := filepath.Join(strings.TrimSpace(string(root)), "src/internal/trace/traceviewer/static")
	require.FileExists(t, filepath.Join(static, "trace_viewer_full.html"), "this Go has its trace viewer elsewhere")
	var browser string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if browser, err = exec.LookPath(name); err == nil {
			break
		}
	}
	require.NoError(t, err, "there is no Chromium to open the viewer in; scripts/setup test installs it where the release has one")

	var data []byte
	mux := http.NewServeMux()
	mux.Handle("/static/", http.StripPrefix("/static/", http.FileServer(http.Dir(static))))
	mux.HandleFunc("/trace.json", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(data) })
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte(`<!doctype html><script src="/static/webcomponents.min.js"></script>` +
			`<script>addEventListener('WebComponentsReady', () => { document.documentElement.dataset.ready = 'yes' })</script>` +
			`<link rel="import" href="/static/trace_viewer_full.html">`))
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)

	ctx, cancel := chromedp.NewExecAllocator(t.Context(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(browser),
		chromedp.UserDataDir(t.TempDir()),
		chromedp.NoSandbox, // there is none for root, and the page is our own
		chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.WSURLReadTimeout(time.Minute),
	)...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 3*time.Minute)
	t.Cleanup(cancel)
	require.NoError(t, chromedp.Do(ctx, chromedp.Navigate(server.URL), chromedp.WaitReady(chromedp.CSS(`html[data-ready=yes]`))))

	return func(trace []byte) imported {
		data = trace
		text, err := chromedp.Run(ctx, chromedp.Evaluate[string](`(() => {
			const request = new XMLHttpRequest();
			request.open('GET', '/trace.json', false);
			request.send();
			const model = new tr.Model();
			new tr.importer.Import(model).importTraces([request.responseText]);
			const out = { warnings: model.importWarnings.map(w => w.message || String(w)), slices: 0, nested: 0, tracks: [], processes: [] };
			for (const p of Object.values(model.processes)) {
				out.processes.push(p.name || '');
				for (const t of Object.values(p.threads)) {
					out.tracks.push(t.name || '');
					for (const s of t.sliceGroup.slices) {
						out.slices++;
						if (s.parentSlice) out.nested++;
					}
				}
			}
			return JSON.stringify(out);
		})()`))
		require.NoError(t, err)
		var got imported
		require.NoError(t, json.Unmarshal([]byte(text), &got))
		return got
	}
}

// imported is what the viewer understood.
type imported struct {
	Warnings          []string
	Slices            int // instants are slices without a duration
	Nested            int
	Tracks, Processes []string
}

// The viewer takes in all that is written, without a complaint.
func TestTheTraceViewerReadsIt(t *testing.T) {
	read := viewer(t)
	traces := map[string]*bytes.Buffer{"made up": {}}
	made := export.NewPerfetto(traces["made up"])
	require.NoError(t, sample.Feed(made, 500, false))
	require.NoError(t, made.Close())
	dumps, err := filepath.Glob("../pipeline/testdata/*/*.tcpt")
	require.NoError(t, err)
	require.NotEmpty(t, dumps)
	for _, path := range dumps {
		traces[path] = new(bytes.Buffer)
		replay(t, path, export.NewPerfetto(traces[path]), pipeline.Show{Verdicts: true, Connections: true, All: true, Open: true}, true)
	}
	for name, b := range traces {
		events := checkTrace(t, b.Bytes())
		instants, tops := 0, 0
		for _, e := range events["i"] {
			if e.S == "t" {
				instants++
			}
		}
		for _, e := range events["X"] {
			if e.Cat != "state" {
				tops++
			}
		}
		processes := 0
		for _, e := range events["M"] {
			if e.Name == "process_name" {
				processes++
			}
		}
		got := read(b.Bytes())
		require.Empty(t, got.Warnings, name)
		require.Equal(t, len(events["X"])+instants, got.Slices, name)
		require.Equal(t, got.Slices-tops, got.Nested, "%s: states and entries lie within their connection", name)
		require.Len(t, got.Tracks, tops, name)
		require.NotContains(t, got.Tracks, "", name)
		named := 0
		for _, p := range got.Processes {
			if p != "" {
				named++
			}
		}
		require.Equal(t, processes, named, name)

		// Cut off behind a line, as by kill -9, all but the last line is there.
		cut := b.Bytes()[:bytes.LastIndexByte(bytes.TrimRight(b.Bytes(), "\n]"), '\n')]
		after := read(bytes.TrimRight(cut, "\n"))
		require.Empty(t, after.Warnings, name)
		require.GreaterOrEqual(t, after.Slices, got.Slices-1, name)
	}
}
