package programtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/kerneltest/watchtest"
	"github.com/tcptrace/tcptrace/internal/render"
)

const (
	nginxPort    = 8080
	nginxAddr    = "127.0.0.1:8080"
	nginxWorkers = 2
)

// nginxArgs writes a configuration and returns the arguments that name it.
// listen are further parameters of the listen directive, server are directives.
func (p *place) nginxArgs(listen, server string) []string {
	p.Helper()
	return p.nginxServers(fmt.Sprintf("server {\n\t\tlisten %s %s;\n\t\t%s\n\t}", nginxAddr, listen, server))
}

// nginxServers is nginxArgs for any server blocks.
func (p *place) nginxServers(servers string) []string {
	p.Helper()
	path := find(p.T, "nginx")
	built, err := exec.Command(path, "-V").CombinedOutput()
	require.NoError(p, err)
	help, err := exec.Command(path, "-h").CombinedOutput()
	require.NoError(p, err)
	// What it would create at start below /var/lib stays here.
	var temp strings.Builder
	for directive, option := range map[string]string{
		"client_body_temp_path": "", "proxy_temp_path": "proxy", "fastcgi_temp_path": "fastcgi",
		"uwsgi_temp_path": "uwsgi", "scgi_temp_path": "scgi",
	} {
		if option == "" || !strings.Contains(string(built), "--without-http_"+option+"_module") {
			fmt.Fprintf(&temp, "\t%s %s/%s;\n", directive, p.dir, directive)
		}
	}
	www := filepath.Join(p.dir, "www")
	require.NoError(p, os.Mkdir(www, 0o755))
	require.NoError(p, os.WriteFile(filepath.Join(www, "index.html"), []byte("<p>Hello.</p>\n"), 0o644))
	conf := filepath.Join(p.dir, "nginx.conf")
	text := fmt.Sprintf(`daemon off;
user root root; # the test's directory is root's
worker_processes %d;
pid %s/nginx.pid;
error_log stderr;
events { worker_connections 256; }
http {
	access_log off;
	root %s;
%s	%s
}
`, nginxWorkers, p.dir, www, temp.String(), servers)
	require.NoError(p, os.WriteFile(conf, []byte(text), 0o644))
	args := []string{"-p", p.dir, "-c", conf}
	if strings.Contains(string(help), "-e filename") { // else it opens its log in /var/log first
		args = append(args, "-e", "stderr")
	}
	return args
}

// nginx starts nginx and waits until its workers are there.
func (p *place) nginx(args []string) *program {
	p.Helper()
	g := p.start("nginx", args...)
	p.listens(nginxPort)
	p.until("nginx has its workers", func() bool { return len(g.children()) == nginxWorkers })
	return g
}

func TestNginxConnectionPerRequest(t *testing.T) {
	const requests = 3000
	p := newPlace(t)
	p.watch(diagnose.Options{})
	p.nginx(p.nginxArgs("", ""))
	p.ab(requests, "-c", "20")
	p.silent()
	// ab opens some that it does not come to use.
	assert.GreaterOrEqual(t, len(served(p)), requests)
	assert.EqualValues(t, p.counter("Tcp.PassiveOpens"), len(served(p)))
}

func TestNginxKeepAlive(t *testing.T) {
	const requests, each = 3000, 50
	p := newPlace(t)
	p.nginx(p.nginxArgs("", fmt.Sprintf("keepalive_requests %d;", each)))
	p.watch(diagnose.Options{}) // nginx is older than the watch here
	p.ab(requests, "-k", "-c", "20")
	p.silent()
	assert.GreaterOrEqual(t, len(served(p)), requests/each)
	assert.EqualValues(t, p.counter("Tcp.PassiveOpens"), len(served(p)))
}

// served returns the servers' ends of the connections.
func served(p *place) []*render.Connection {
	var all []*render.Connection
	for _, c := range p.w.Connections {
		if c.Role == "server" {
			all = append(all, c)
		}
	}
	return all
}

// TestNginxReload has workers replaced under load: none of the connections
// comes to harm.
func TestNginxReload(t *testing.T) {
	const reloads, requests = 3, 4000
	p := newPlace(t)
	p.watch(diagnose.Options{})
	args := p.nginxArgs("", "")
	g := p.nginx(args)
	seen := map[int]bool{}
	during := 0
	for range reloads {
		old := g.children()
		before := p.counter("Tcp.PassiveOpens")
		load := p.start("ab", "-q", "-n", fmt.Sprint(requests), "-c", "10", "http://"+nginxAddr+"/")
		p.until("the load has begun", func() bool { return p.counter("Tcp.PassiveOpens") > before })
		p.start("nginx", append(slices.Clone(args), "-s", "reload")...).wait()
		p.until("other workers have taken over", func() bool {
			now := g.children()
			return len(now) == nginxWorkers && !slices.ContainsFunc(now, func(pid int) bool { return slices.Contains(old, pid) })
		})
		select {
		case <-load.ended:
		default:
			during++
		}
		p.abEnds(load, requests)
		for _, pid := range append(old, g.children()...) {
			seen[pid] = true
		}
	}
	assert.Positive(t, during, "each time the load ended before the reload did")
	p.silent()
	workers := map[uint32]int{}
	for _, c := range served(p) {
		workers[c.Process.PID]++
		assert.True(t, seen[int(c.Process.PID)], "%s[%d] is one of nginx's workers", c.Process.Comm, c.Process.PID)
	}
	t.Logf("connections by worker: %v", workers)
	assert.Greater(t, len(workers), nginxWorkers, "connections were served before a reload and after")
}

// TestNginxStopped has nobody accept: the queue of a backlog of 4 holds 5
// connections, and the SYNs of all others are dropped.
func TestNginxStopped(t *testing.T) {
	const backlog, clients = 4, 40
	p := newPlace(t)
	p.watch(diagnose.Options{})
	g := p.nginx(p.nginxArgs(fmt.Sprintf("backlog=%d", backlog), ""))
	workers := g.children()
	for _, pid := range workers {
		p.signal(pid, syscall.SIGSTOP)
	}
	var loads []*program
	for range clients { // one each: ab waits for its first answer before it connects further
		loads = append(loads, p.start("ab", "-q", "-n", "1", "http://"+nginxAddr+"/"))
	}
	p.until("all further SYNs are dropped", func() bool { return p.counter("TcpExt.ListenOverflows") >= clients-backlog-2 })
	p.until("the overflow is told while it lasts", func() bool {
		return slices.ContainsFunc(p.w.Verdicts(), func(v *render.Verdict) bool { return v.Code == "accept-queue-overflow" })
	})
	waiting := p.queue(nginxPort)
	assert.InDelta(t, backlog+1, waiting, 1) // final ACKs on two processors may both find the last place
	for _, pid := range workers {
		p.signal(pid, syscall.SIGCONT)
	}
	for _, load := range loads {
		p.abEnds(load, 1)
	}

	// From here on, nothing new.
	time.Sleep(100 * time.Millisecond) // what has happened is told
	overflows := p.counter("TcpExt.ListenOverflows")
	cookies := p.counter("TcpExt.TCPReqQFullDoCookies")
	p.ab(200, "-c", "2")
	require.Equal(t, overflows, p.counter("TcpExt.ListenOverflows"), "two clients at a time do not fill the queue")

	got := p.end()
	// Those that try again at the same moment are more than a backlog of 4 has
	// room for half-open, too.
	and := []string{"accept-queue-overflow"}
	if cookies > 0 {
		and = append(and, "syn-queue-overflow")
	}
	p.forbid(got, and...)
	v := only(p, got, "accept-queue-overflow", g.pid)
	assert.Equal(t, diagnose.Error, v.Severity)
	slack := 0.0
	if watchtest.Full(p.w.Caps) {
		assert.Equal(t, diagnose.Certain, v.Confidence)
	} else {
		// Dropped SYNs are concluded from a queue that another processor may
		// have changed meanwhile: more so after SIGCONT.
		assert.Contains(t, []diagnose.Confidence{diagnose.Certain, diagnose.Likely}, v.Confidence)
		slack = clients / 10
	}
	assert.Equal(t, "nginx", v.Process.Comm)
	assert.Equal(t, diagnose.Subject{Kind: "listener", Name: nginxAddr}, v.Subject)
	assert.InDelta(t, clients-waiting, v.Count, slack, "connections that met the full queue")
	assert.EqualValues(t, backlog, v.Evidence.Get("backlog_argument"))
	assert.EqualValues(t, backlog, v.Evidence.Get("backlog_limit"))
	assert.GreaterOrEqual(t, v.Evidence.Get("queue_len"), int64(waiting))
	assert.InDelta(t, backlog+1, v.Evidence.Get("queue_len"), 1)
	assert.Equal(t, "backlog argument", v.Evidence.Get("limited_by"))
	// Of those that try again at the same time when the queue has room, more
	// than it holds may get in with their SYN, and not with their final ACK.
	syn, ack := v.Evidence.Get("syn_dropped").(int64), v.Evidence.Get("ack_dropped").(int64)
	assert.GreaterOrEqual(t, float64(syn), float64(clients-waiting)-slack)
	assert.LessOrEqual(t, uint64(syn+ack), overflows, "%d SYNs and %d final ACKs dropped", syn, ack)
	if watchtest.Full(p.w.Caps) {
		assert.Equal(t, overflows, uint64(syn+ack), "%d SYNs and %d final ACKs dropped", syn, ack)
	}
	assert.EqualValues(t, 0, v.Evidence.Get("rst_sent"))
	assert.EqualValues(t, 1, v.Evidence.Get("clients"))
}

// The threshold in these tests, so that they need not wait for the default of
// a minute.
const closeWait = 2 * time.Second

// TestPoolLeak has nginx close idle connections that the client never closes.
func TestPoolLeak(t *testing.T) {
	const size = 12
	p := newPlace(t)
	p.watch(diagnose.Options{CloseWait: closeWait})
	p.nginx(p.nginxArgs("", "keepalive_timeout 1s;"))
	client := p.python("pool.py", fmt.Sprint(nginxPort), fmt.Sprint(size), "leak")
	client.says("closed by the server")
	comm := client.comm()
	p.until("the leak is told", func() bool {
		return slices.ContainsFunc(p.w.Verdicts(), func(v *render.Verdict) bool { return v.Code == "close-wait-leak" })
	})
	got := p.end()
	p.forbid(got, "close-wait-leak")
	v := only(p, got, "close-wait-leak", client.pid)
	assert.Equal(t, diagnose.Warning, v.Severity)
	assert.Equal(t, diagnose.Certain, v.Confidence)
	assert.Equal(t, comm, v.Process.Comm)
	assert.EqualValues(t, size, v.Count)
	assert.EqualValues(t, size, v.Evidence.Get("count"))
	assert.Equal(t, nginxAddr, v.Evidence.Get("remote"))
	assert.Equal(t, "off", v.Evidence.Get("keepalive"))
	assert.Contains(t, v.Story, "has not called close()")
}

// TestPoolClosed is the healthy twin.
func TestPoolClosed(t *testing.T) {
	const size = 12
	p := newPlace(t)
	p.watch(diagnose.Options{CloseWait: closeWait})
	p.nginx(p.nginxArgs("", "keepalive_timeout 1s;"))
	client := p.python("pool.py", fmt.Sprint(nginxPort), fmt.Sprint(size), "close")
	client.says("closed by the server")
	time.Sleep(closeWait + time.Second)
	p.silent()
	assert.Len(t, served(p), size)
}
