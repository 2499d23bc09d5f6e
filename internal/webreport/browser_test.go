package webreport

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/pipeline"
)

// screenshots names a folder to keep the pictures in; without it they go with
// the test.
const screenshots = "TCPTRACE_SCREENSHOTS"

// browser is a headless Chromium with one page open, and what it complained
// about.
type browser struct {
	t   *testing.T
	ctx context.Context
	dir string

	mu         sync.Mutex
	complaints []string
	requests   []string
}

func chromium(t *testing.T) string {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	require.FailNow(t, "there is no Chromium to open the page in", "scripts/setup test installs it where the release has one")
	return ""
}

func newBrowser(t *testing.T) *browser {
	t.Helper()
	t.Parallel() // they wait for the browser most of the time
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(chromium(t)),
		chromedp.UserDataDir(t.TempDir()),
		chromedp.NoSandbox, // there is none for root, and the page is our own
		chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.WSURLReadTimeout(time.Minute),
		chromedp.WindowSize(1280, 900),
	)
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 3*time.Minute)
	t.Cleanup(cancel)
	b := &browser{t: t, ctx: ctx, dir: os.Getenv(screenshots)}
	if b.dir == "" {
		b.dir = t.TempDir()
	}
	b.run() // opens the page that is listened to
	require.NoError(t, chromedp.Listen(ctx, b.hear))
	send(b, network.Enable, network.EnableParams{})
	send(b, log.Enable, cdp.Empty{})
	return b
}

// hear notes errors and requests.
func (b *browser) hear(ev any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch ev := ev.(type) {
	case *runtime.EventExceptionThrown:
		b.complaints = append(b.complaints, "exception: "+ev.ExceptionDetails.Text+" "+describe(ev.ExceptionDetails.Exception))
	case *runtime.EventConsoleAPICalled:
		var words []string
		for _, a := range ev.Args {
			words = append(words, describe(a))
		}
		b.complaints = append(b.complaints, fmt.Sprintf("console.%s: %s", ev.Type, strings.Join(words, " ")))
	case *log.EventEntryAdded:
		b.complaints = append(b.complaints, fmt.Sprintf("%s: %s", ev.Entry.Level, ev.Entry.Text))
	case *network.EventRequestWillBeSent:
		b.requests = append(b.requests, ev.Request.URL)
	}
}

func describe(o *runtime.RemoteObject) string {
	if o == nil {
		return ""
	}
	return string(o.Value) + o.Description
}

func (b *browser) run(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	require.NoError(b.t, chromedp.Do(b.ctx, actions...))
}

// result runs one action for what it gives.
func result[T any](b *browser, a chromedp.Action[T]) T {
	b.t.Helper()
	out, err := chromedp.Run(b.ctx, a)
	require.NoError(b.t, err)
	return out
}

// send gives the browser a command.
func send[P, R any](b *browser, cmd cdp.Command[P, R], params P) {
	b.t.Helper()
	_, err := chromedp.Call(b.ctx, cmd, params)
	require.NoError(b.t, err)
}

// open opens a report from a file and waits until its scripts are done.
func (b *browser) open(r *Report) (size int) {
	b.t.Helper()
	path := filepath.Join(b.t.TempDir(), "report.html")
	f, err := os.Create(path)
	require.NoError(b.t, err)
	count := &counter{w: f}
	require.NoError(b.t, r.Write(count))
	require.NoError(b.t, f.Close())
	b.openFile(path)
	return count.n
}

func (b *browser) openFile(path string) {
	b.t.Helper()
	b.requests = nil
	b.run(chromedp.Navigate("file://"+path), chromedp.WaitReady(chromedp.CSS(`html[data-ready=yes]`)))
}

type counter struct {
	w io.Writer
	n int
}

func (c *counter) Write(b []byte) (int, error) { c.n += len(b); return c.w.Write(b) }

// js evaluates an expression of the page.
func js[T any](b *browser, expression string) T {
	b.t.Helper()
	return result(b, chromedp.Evaluate[T](expression))
}

// script runs statements of which nothing is wanted.
func script(statements string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := chromedp.Evaluate[bool]("(() => { "+statements+"; return true; })()")(ctx, t)
		return err
	})
}

// until waits for an expression to hold.
func (b *browser) until(expression string) {
	b.t.Helper()
	require.Eventually(b.t, func() bool { return js[bool](b, expression) }, 10*time.Second, 20*time.Millisecond, expression)
}

// picture keeps what is in sight.
func (b *browser) picture(name string) {
	b.t.Helper()
	png := result(b, chromedp.CaptureScreenshot())
	require.NoError(b.t, os.WriteFile(filepath.Join(b.dir, name+".png"), png, 0o644))
}

// whole keeps a picture of the whole page.
func (b *browser) whole(name string) {
	b.t.Helper()
	png := result(b, chromedp.FullScreenshot(100))
	require.NoError(b.t, os.WriteFile(filepath.Join(b.dir, name+".png"), png, 0o644))
}

func (b *browser) size(width, height int64) {
	b.t.Helper()
	send(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: 1, Mobile: width < 600})
}

// quiet fails where the page complained, or asked anybody for anything.
func (b *browser) quiet() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	assert.Empty(b.t, b.complaints, "errors and other output on the console")
	for _, r := range b.requests {
		if !strings.HasPrefix(r, "file:///") || !strings.HasSuffix(r, ".html") {
			assert.Fail(b.t, "the page made a request", r)
		}
	}
	assert.Len(b.t, b.requests, 1, "the file itself and nothing else")
}

const matches = `document.getElementById('matches').textContent`

func TestPageInBrowser(t *testing.T) {
	b := newBrowser(t)
	r := New(Options{Title: "Checkout at 3 a.m."})
	traffic{host: "web-1", n: 1200, spans: 90 * time.Second, comm: "nginx"}.play(r)
	b.open(r)

	assert.Equal(t, "Checkout at 3 a.m.", js[string](b, `document.querySelector('h1').textContent`))
	assert.Equal(t, "1,200", js[string](b, matches))
	assert.True(t, js[bool](b, `document.getElementById('status').hidden`))
	b.picture("top")
	b.whole("whole")

	// The ranked causes, and an example that opens its connection.
	assert.Equal(t, []string{"accept-queue-overflow", "reset-received"}, js[[]string](b, `[...document.querySelectorAll('.cause summary code')].map(e => e.textContent)`))
	example := js[string](b, `document.querySelectorAll('#cause-1 button.example')[0].dataset.id`)
	b.run(chromedp.Click(chromedp.CSS(`#cause-1 summary`)), chromedp.Click(chromedp.CSS(`#cause-1 button.example`)))
	b.until(`document.querySelectorAll('.detail .steps .step').length > 0`)
	assert.Contains(t, js[string](b, `document.querySelector('.detail').textContent`), example)
	// Both ends: eight entries, and what one sent arrived at the other.
	assert.Equal(t, 8, js[int](b, `document.querySelectorAll('.detail .step').length`))
	b.until(`document.querySelectorAll('.detail .arrow').length >= 3`)
	assert.Equal(t, []string{"SYN", "SYN-ACK", "ACK", "RST"}, js[[]string](b, `[...document.querySelectorAll('.detail .label')].map(e => e.textContent)`))
	b.picture("ladder")

	// Search and filters.
	b.run(chromedp.SendKeys(chromedp.CSS(`#q`), "reset by the peer"))
	b.until(matches + ` === '13 of 1,200'`)
	b.run(chromedp.Click(chromedp.CSS(`#f-clear`)))
	b.until(matches + ` === '1,200'`)
	b.run(chromedp.SendKeys(chromedp.CSS(`#q`), "10.0.1.7:"))
	b.until(matches + ` === '6 of 1,200'`)
	b.run(chromedp.Click(chromedp.CSS(`#f-clear`)))
	b.run(chromedp.SetValue(chromedp.CSS(`#f-code`), "accept-queue-overflow"), script(`document.getElementById('f-code').dispatchEvent(new Event('change', {bubbles: true}))`))
	b.until(matches + ` === '80 of 1,200'`)
	b.picture("filtered")
	b.run(chromedp.Click(chromedp.CSS(`#f-clear`)))
	b.run(chromedp.SendKeys(chromedp.CSS(`#f-port`), "20005"))
	b.until(matches + ` === '1 of 1,200'`)
	b.run(chromedp.Click(chromedp.CSS(`#f-clear`)), chromedp.Click(chromedp.CSS(`#f-wrong`)))
	b.until(matches + ` === '93 of 1,200'`)
	b.run(chromedp.Click(chromedp.CSS(`#f-clear`)))

	// Sorting.
	b.run(chromedp.Click(chromedp.CSS(`.tr.head [data-column=took] button`)))
	b.until(`document.querySelector('.tr.head [data-column=took]').getAttribute('aria-sort') === 'descending'`)
	assert.True(t, js[bool](b, `(() => { const t = [...document.querySelectorAll('.space > .tr')].sort((a, b) => a.ariaRowIndex - b.ariaRowIndex).map(e => parseFloat(e.querySelector('.took').textContent)); return t.length > 5 && t.every((v, i) => i === 0 || v <= t[i - 1]); })()`), "the longest first")

	// Zoom: by the mouse, by keys, and it filters the table.
	b.run(chromedp.ScrollIntoView(chromedp.CSS(`#time`)))
	box := js[struct{ X, Y, W, H float64 }](b, `(() => { const r = document.querySelector('#charts .u-over').getBoundingClientRect(); return {X: r.x, Y: r.y, W: r.width, H: r.height}; })()`)
	b.run(chromedp.MouseEvent("mouseMoved", box.X+box.W*0.55, box.Y+box.H/2))
	b.picture("hover")
	// Chromium's made-up mouse events do not say how far the mouse moved, which
	// uPlot wants to know.
	b.run(script(`const over = document.querySelector('#charts .u-over'), r = over.getBoundingClientRect();
		for (const [type, x] of [['mousedown', 0.5], ['mousemove', 0.55], ['mousemove', 0.6], ['mouseup', 0.6]])
			over.dispatchEvent(new MouseEvent(type, {bubbles: true, cancelable: true, clientX: r.x + r.width * x, clientY: r.y + r.height / 2, movementX: 9, movementY: 1, button: 0, buttons: 1}))`))
	b.until(`/^1\d\d of 1,200, within the zoomed time$/.test(` + matches + `)`)
	b.picture("zoomed")
	zoomed := js[string](b, `document.getElementById('zoom-range').textContent`)
	b.run(chromedp.Focus(chromedp.CSS(`#charts .chart`)), chromedp.KeyEvent("+"))
	b.until(`document.getElementById('zoom-range').textContent !== ` + fmt.Sprintf("%q", zoomed))
	b.run(chromedp.KeyEvent(kb.ArrowLeft), chromedp.KeyEvent("-"), chromedp.KeyEvent("0"))
	b.until(matches + ` === '1,200'`)
	b.run(script(`document.querySelector('#charts .u-over').dispatchEvent(new WheelEvent('wheel', {deltaY: -100, clientX: 600, clientY: 300, bubbles: true, cancelable: true}))`))
	b.until(`document.getElementById('zoom-range').textContent !== ''`)
	b.run(chromedp.Click(chromedp.CSS(`#zoom-reset`)))
	b.until(matches + ` === '1,200'`)

	// The keyboard alone.
	b.run(script(`document.activeElement.blur()`), chromedp.KeyEvent("/"))
	assert.Equal(t, "q", js[string](b, `document.activeElement.id`))
	b.run(chromedp.KeyEvent(kb.Escape))
	assert.Equal(t, "grid", js[string](b, `document.activeElement.id`))
	open := js[int](b, `document.querySelectorAll('.detail').length`)
	b.run(chromedp.KeyEvent(kb.Home), chromedp.KeyEvent(kb.ArrowDown), chromedp.KeyEvent(kb.Enter))
	b.until(fmt.Sprintf(`document.querySelectorAll('.detail').length === %d`, open+1))
	assert.Equal(t, "3", js[string](b, `document.getElementById(document.getElementById('grid').getAttribute('aria-activedescendant')).ariaRowIndex`))
	assert.Equal(t, "true", js[string](b, `document.getElementById(document.getElementById('grid').getAttribute('aria-activedescendant')).getAttribute('aria-expanded')`))
	b.picture("keyboard")
	b.run(chromedp.KeyEvent(kb.Enter))
	b.until(fmt.Sprintf(`document.querySelectorAll('.detail').length === %d`, open))
	b.run(chromedp.KeyEvent("?"))
	b.until(`document.getElementById('help').open`)
	b.picture("help")
	b.run(chromedp.KeyEvent(kb.Escape))
	b.until(`!document.getElementById('help').open`)
	b.run(chromedp.KeyEvent("c"))
	assert.Equal(t, "SUMMARY", js[string](b, `document.activeElement.tagName`))

	// Everything that can be pressed has a name, and can be reached.
	assert.Empty(t, js[[]string](b, `[...document.querySelectorAll('button, input, select, a')].filter(e => !(e.textContent.trim() || e.ariaLabel || (e.labels && e.labels.length)) || e.tabIndex < 0).map(e => e.outerHTML)`))

	// Dark, by the system's wish and by the button.
	light := js[string](b, `getComputedStyle(document.body).backgroundColor`)
	send(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}}})
	b.until(`getComputedStyle(document.body).backgroundColor !== ` + fmt.Sprintf("%q", light))
	b.run(script(`scrollTo(0, 0)`))
	b.whole("dark")
	b.run(chromedp.Click(chromedp.CSS(`#theme`)))
	b.until(`getComputedStyle(document.body).backgroundColor === ` + fmt.Sprintf("%q", light))

	// Narrow: nothing sticks out.
	b.size(400, 800)
	b.until(`innerWidth === 400`)
	assert.LessOrEqual(t, js[int](b, `document.documentElement.scrollWidth`), 400)
	b.run(script(`document.querySelector('#cause-1 button.example').click()`))
	b.picture("narrow-ladder")
	b.run(script(`scrollTo(0, 0)`))
	b.whole("narrow")
	b.quiet()

	// Paper: everything unfolded, and the connections without their scroll box.
	b.size(800, 1100)
	send(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Media: "print"})
	b.run(script(`dispatchEvent(new Event('beforeprint'))`))
	assert.Equal(t, 300, js[int](b, `document.querySelectorAll('#print-rows .tr').length`))
	assert.Zero(t, js[int](b, `document.querySelectorAll('main details:not([open])').length`))
	b.whole("print")
	b.run(script(`dispatchEvent(new Event('afterprint'))`))
	assert.Zero(t, js[int](b, `document.querySelectorAll('#print-rows .tr').length`))
	pdf := result(b, chromedp.PrintToPDF(func(p *page.PrintToPDFParams) { p.PrintBackground = new(bool); *p.PrintBackground = true }))
	require.NoError(t, os.WriteFile(filepath.Join(b.dir, "print.pdf"), pdf, 0o644))
	assert.Greater(t, len(pdf), 10_000)
}

// What came from the network and from processes is text, on the page as well.
func TestHostileNamesInBrowser(t *testing.T) {
	r := New(Options{Title: hostile})
	traffic{host: hostile, n: 60, spans: time.Second, comm: "</script><b>x"}.play(r)
	b := newBrowser(t)
	b.open(r)
	b.run(chromedp.Click(chromedp.CSS(`#cause-0 button.example`)))
	b.until(`document.querySelectorAll('.detail .step').length > 0`)
	assert.Zero(t, js[int](b, `document.querySelectorAll('b, img, iframe, script[src]').length`))
	assert.Contains(t, js[string](b, `document.querySelector('.detail').textContent`), "</script><b>x[812]")
	assert.Contains(t, js[string](b, `document.title`), "<img src=x onerror=alert(1)>")
	b.quiet()
}

const hostile = "</title></script><img src=x onerror=alert(1)>\u202e\x1b[31m"

func TestHundredThousandConnections(t *testing.T) {
	b := newBrowser(t)
	r := New(Options{})
	traffic{host: "web-1", n: 60_000, spans: time.Hour, comm: "nginx"}.play(r)
	traffic{host: "web-2", n: 40_000, spans: time.Hour, comm: "haproxy", shift: 10 * int64(time.Minute)}.play(r)
	began := time.Now()
	size := b.open(r)
	loaded := time.Since(began)
	inPage := js[float64](b, `performance.now()`)
	assert.Less(t, size, 10<<20, "bytes of the page")
	assert.Equal(t, "100,000", js[string](b, matches))
	assert.Less(t, inPage, 10_000.0, "ms to load it")
	began = time.Now()
	b.run(chromedp.SetValue(chromedp.CSS(`#q`), "haproxy 10.0.1.7:2"), script(`document.getElementById('q').dispatchEvent(new Event('input', {bubbles: true}))`))
	b.until(`/^\d+ of 100,000$/.test(` + matches + `)`)
	searched := time.Since(began)
	assert.Less(t, searched, 5*time.Second)
	t.Logf("%d bytes, written and loaded in %v, loaded in %.0f ms, searched in %v", size, loaded, inPage, searched)
	b.run(chromedp.Click(chromedp.CSS(`#f-clear`)))
	b.until(matches + ` === '100,000'`)
	b.run(chromedp.Focus(chromedp.CSS(`#grid`)), chromedp.KeyEvent(kb.End))
	b.until(`document.querySelector('#grid').getAttribute('aria-activedescendant') !== null`)
	assert.Equal(t, "100001", js[string](b, `document.querySelector('.tr.active').ariaRowIndex`))
	assert.Less(t, js[int](b, `document.querySelectorAll('.tr').length`), 100, "rows in the document")
	b.picture("many")
	b.quiet()
}

// A page whose data is damaged says so, and one without JavaScript says what
// it needs.
func TestDamagedAndUnscripted(t *testing.T) {
	r := New(Options{})
	traffic{host: "web-1", n: 10, spans: time.Second, comm: "nginx"}.play(r)
	var page bytes.Buffer
	require.NoError(t, r.Write(&page))
	const mark = `id="data">`
	at := bytes.Index(page.Bytes(), []byte(mark)) + len(mark)
	broken := bytes.Clone(page.Bytes())
	copy(broken[at:], base64.StdEncoding.EncodeToString([]byte("this is not gzip")))
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "broken.html"), broken, 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "whole.html"), page.Bytes(), 0o644))

	b := newBrowser(t)
	b.run(chromedp.Navigate("file://" + filepath.Join(dir, "broken.html")))
	b.until(`document.getElementById('status').textContent.includes('damaged')`)
	send(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	b.run(chromedp.Navigate("file://" + filepath.Join(dir, "whole.html")))
	b.until(`document.getElementById('status').textContent.includes('DecompressionStream')`)
	assert.True(t, js[bool](b, `document.getElementById('status').offsetHeight > 0 && document.getElementById('connections').hidden`))
	b.picture("unscripted")
}

// What was recorded of real traffic: the golden dumps, one run after the other.
func TestRealDumpsInBrowser(t *testing.T) {
	names, err := filepath.Glob("../pipeline/testdata/v1/*.tcpt")
	require.NoError(t, err)
	require.NotEmpty(t, names)
	r := New(Options{})
	for _, name := range names {
		replay(t, r, name)
	}
	b := newBrowser(t)
	b.open(r)
	codes := js[[]string](b, `[...document.querySelectorAll('.cause summary code')].map(e => e.textContent)`)
	assert.Subset(t, codes, []string{"accept-queue-overflow", "close-wait-leak", "immediate-close", "port-exhaustion", "reset-sent"})
	assert.NotZero(t, js[int](b, `document.querySelectorAll('.queues tbody tr').length`))
	b.whole("real")
	// The causes name connections, and all of them are here.
	examples := js[int](b, `document.querySelectorAll('button.example').length`)
	require.NotZero(t, examples)
	assert.Zero(t, js[int](b, `document.querySelectorAll('.examples code').length`))
	for i := range min(examples, 12) {
		b.run(script(fmt.Sprintf(`document.querySelectorAll('button.example')[%d].click()`, i)))
		b.until(`[...document.querySelectorAll('.detail')].every(e => e.querySelectorAll('.step').length > 0 && e.querySelectorAll('.life').length === 2)`)
		b.picture(fmt.Sprintf("real-%d", i))
	}
	b.quiet()
}

// replay gives a dump to a report, as the report command does.
func replay(t *testing.T, r *Report, name string) {
	f, err := os.Open(name)
	require.NoError(t, err)
	defer f.Close()
	d, err := dump.NewReader(f)
	require.NoError(t, err)
	cfg := pipeline.ReplayConfig{Options: pipeline.Options{
		Out: r, Raw: r.Raw, Show: pipeline.Show{Verdicts: true, Connections: true, All: true, Open: true},
		Diagnose: diagnose.Options{CloseWait: 2 * time.Second},
	}}
	_, err = pipeline.Replay(t.Context(), cfg, pipeline.Recording{Parts: []pipeline.Part{{Name: name, Reader: d}}})
	require.NoError(t, err)
}
