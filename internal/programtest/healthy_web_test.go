package programtest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// server is a block of nginx's configuration.
func server(directives ...string) string {
	return "server {\n\t" + strings.Join(directives, "\n\t") + "\n}\n"
}

// nginxWith starts nginx and waits until it serves.
func (p *place) nginxWith(port int, servers ...string) (*program, []string) {
	p.Helper()
	args := p.nginxServers(strings.Join(servers, ""))
	g := p.start("nginx", args...)
	p.listens(port)
	p.until("nginx has its workers", func() bool { return len(g.children()) == nginxWorkers })
	return g, args
}

// quits ends nginx in order.
func (p *place) quits(nginx *program) {
	p.Helper()
	p.signal(nginx.pid, syscall.SIGQUIT)
	nginx.wait()
}

// curl asks for URLs, each of which must be answered with status 200.
func (p *place) curl(args ...string) {
	p.Helper()
	p.run("curl", append([]string{"--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "20", "--output", "/dev/null"}, args...)...)
}

// webLoad has one listener for IPv6 and IPv4 serve ab and curl, with and
// without keep-alive.
func webLoad(p *place) {
	g, _ := p.nginxWith(nginxPort, server("listen [::]:8080 ipv6only=off;"),
		server("listen 127.0.0.1:8081;", "keepalive_requests 20;", "keepalive_timeout 1s;", "client_max_body_size 10k;"),
		server("listen 127.0.0.1:8082 deferred;", "keepalive_timeout 0;"))
	large := filepath.Join(p.dir, "large")
	require.NoError(p, os.WriteFile(large, make([]byte, 300_000), 0o644))
	for p.lasts() {
		p.abAt("http://127.0.0.1:8080/", 200, "-c", "10")
		p.abAt("http://[::1]:8080/", 200, "-c", "10", "-k")
		p.abAt("http://127.0.0.1:8081/", 200, "-c", "5", "-k")
		p.abAt("http://127.0.0.1:8082/", 100, "-c", "5")
		p.curl("http://127.0.0.1:8080/", "http://127.0.0.1:8080/")
		p.curl("http://[::1]:8080/")
		p.curl("--header", "Connection: close", "http://127.0.0.1:8081/")
		p.curl("--http1.0", "http://127.0.0.1:8081/")
		p.curl("--head", "http://127.0.0.1:8082/")
		p.curl("--happy-eyeballs-timeout-ms", "1", "http://localhost:8080/")
		// Refused for its size, and read to its end all the same.
		out := p.run("curl", "--silent", "--noproxy", "*", "--data-binary", "@"+large, "--output", "/dev/null",
			"--write-out", "%{http_code}", "http://127.0.0.1:8081/")
		require.Equal(p, "413", strings.TrimSpace(out))
	}
	p.quits(g)
}

// webReload has nginx's workers replaced under load, and its program too.
func webReload(p *place) {
	g, args := p.nginxWith(nginxPort, server("listen 127.0.0.1:8080;"))
	for p.lasts() {
		old := g.children()
		load := []*program{
			p.start("ab", "-q", "-n", "600", "-c", "5", "http://127.0.0.1:8080/"),
			p.start("ab", "-q", "-r", "-k", "-s", "2", "-n", "2000", "-c", "5", "http://127.0.0.1:8080/"),
		}
		p.start("nginx", append(slices.Clone(args), "-s", "reload")...).succeeds()
		p.until("other workers have taken over", func() bool {
			now := g.children()
			return len(now) == nginxWorkers && !slices.ContainsFunc(now, func(pid int) bool { return slices.Contains(old, pid) })
		})
		p.abEnds(load[0], 600)
		// A worker that ends closes connections that are kept alive, also where a
		// request is on its way. ab counts that as a failure and goes on; now and
		// then it waits in vain for a last answer, until its time (-s) is over.
		load[1].wait()
		require.Regexp(p, "Complete requests:|The timeout specified has expired", load[1].said())
		time.Sleep(time.Second)
	}
	p.quits(g)
}

const haproxyConf = `
global
	stats socket DIR/haproxy.sock mode 600 level admin expose-fd listeners
	hard-stop-after 10s
defaults
	mode http
	retries 3
	timeout connect 5s
	timeout client 10s
	timeout server 10s
	timeout http-keep-alive 1s
frontend web
	bind 127.0.0.1:8000
	bind :::8001 v4v6
	use_backend fresh if { path_beg /fresh }
	use_backend never if { path_beg /never }
	default_backend pooled
backend pooled
	http-reuse always
	option httpchk GET /
	server a 127.0.0.1:8080 check inter 300ms
	server b [::1]:8080 check inter 300ms
backend fresh
	option http-server-close
	option tcp-check
	server a 127.0.0.1:8080 check inter 300ms
backend never
	http-reuse never
	server a 127.0.0.1:8080 check inter 300ms
listen redis
	mode tcp
	bind 127.0.0.1:6380
	option redis-check
	server r 127.0.0.1:6379 check inter 300ms
`

// proxied has haproxy stand before nginx and redis, check them in its four
// ways, and be reloaded under load.
func proxied(p *place) {
	web, _ := p.nginxWith(nginxPort, server("listen [::]:8080 ipv6only=off;", "location / { try_files /index.html =404; }", "keepalive_timeout 2s;"))
	p.redis(1000)
	conf := filepath.Join(p.dir, "haproxy.cfg")
	require.NoError(p, os.WriteFile(conf, []byte(strings.ReplaceAll(haproxyConf, "DIR", p.dir)), 0o644))
	g := p.start("haproxy", "-W", "-f", conf)
	p.listens(8000)
	p.until("haproxy has its worker", func() bool { return len(g.children()) == 1 })
	for p.lasts() {
		old := g.children()
		load := []*program{p.start("ab", "-q", "-n", "200", "-c", "5", "http://127.0.0.1:8000/")}
		p.abAt("http://127.0.0.1:8000/", 300, "-c", "5", "-k")
		p.abAt("http://[::1]:8001/", 100, "-c", "5")
		p.abAt("http://127.0.0.1:8001/fresh", 100, "-c", "5", "-k")
		p.abAt("http://127.0.0.1:8000/never", 100, "-c", "5")
		p.curl("http://127.0.0.1:8000/", "http://127.0.0.1:8000/fresh", "http://127.0.0.1:8000/never")
		p.abEnds(load[0], 200)
		out := p.run("redis-benchmark", "-q", "-p", "6380", "-c", "5", "-n", "500", "-t", "get,set")
		assert.NotContains(p, out, "rror")
		load = []*program{p.start("ab", "-q", "-n", "600", "-c", "5", "http://127.0.0.1:8000/")}
		p.signal(g.pid, syscall.SIGUSR2)
		p.until("another worker has taken over", func() bool {
			now := g.children()
			return len(now) == 1 && now[0] != old[0]
		})
		p.abEnds(load[0], 600)
	}
	p.signal(g.pid, syscall.SIGUSR1)
	g.wait()
	p.quits(web)
}

// patterns has clients and servers of the kinds that people write use
// connections in all the ways that are in order.
func patterns(p *place) {
	g := p.python("httpserver.py", "all", "8090", "0.5")
	g.says("listening")
	d := p.seconds()
	c := p.python("httpclients.py", "127.0.0.1", "8090", fmt.Sprint(d.Seconds()), "close", "first", "half", "probe", "pool", "async")
	c6 := p.python("httpclients.py", "::1", "8090", fmt.Sprint(d.Seconds()), "close", "first", "big")
	quiet := p.python("idle.py", fmt.Sprint(d.Seconds()))
	for _, c := range []*program{c, c6, quiet} {
		c.waitFor(d)
		assert.Zero(p, c.status, c.said())
		assert.NotContains(p, c.said(), "failed")
	}
	p.orderly(g)
	require.Contains(p, g.said(), "drained")
}

// impatient has clients not wait for slow answers, by their own program and by
// curl.
func impatient(p *place) {
	g := p.python("httpserver.py", "127.0.0.1", "8090", "5")
	g.says("listening")
	d := p.seconds()
	c := p.python("httpclients.py", "127.0.0.1", "8090", fmt.Sprint(d.Seconds()), "giveup")
	for p.lasts() {
		slow := p.start("curl", "--silent", "--noproxy", "*", "--max-time", "0.3", "http://127.0.0.1:8090/slow")
		slow.wait()
		require.Equal(p, 28, slow.status, "curl's time is over")
		time.Sleep(500 * time.Millisecond)
	}
	c.waitFor(d)
	assert.NotContains(p, c.said(), "failed")
	p.orderly(g)
}

// restarts has a server replaced under load by another that listens on the same
// port before the old one drains. What waits in the old one's queue goes to the
// new one's (net.ipv4.tcp_migrate_req), but for a final ACK that comes in the
// instant of the close.
func restarts(p *place) {
	require.NoError(p, p.ns.Sysctl("net.ipv4.tcp_migrate_req", "1"))
	start := func() *program {
		g := p.python("httpserver.py", "127.0.0.1", "8090", "5", "reuseport")
		g.says("listening")
		return g
	}
	old := start()
	for p.lasts() {
		load := p.start("ab", "-q", "-r", "-n", "600", "-c", "5", "http://127.0.0.1:8090/")
		next := start()
		p.orderly(old)
		require.Contains(p, old.said(), "drained")
		load.says("Complete requests:")
		load.wait()
		require.Contains(p, strings.Join(strings.Fields(load.said()), " "), "Complete requests: 600 ")
		old = next
		time.Sleep(time.Second)
	}
	p.orderly(old)
}

// encrypted has TLS connections end in the ways that clients end them.
func encrypted(p *place) {
	key, cert := filepath.Join(p.dir, "key.pem"), filepath.Join(p.dir, "cert.pem")
	p.run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2", "-keyout", key, "-out", cert)
	g, _ := p.nginxWith(8443, server("listen 127.0.0.1:8443 ssl;", "ssl_certificate "+cert+";", "ssl_certificate_key "+key+";", "keepalive_timeout 1s;"))
	s := p.start("openssl", "s_server", "-accept", "8444", "-www", "-quiet", "-key", key, "-cert", cert)
	p.listens(8444)
	for p.lasts() {
		p.curl("--insecure", "https://127.0.0.1:8443/", "https://127.0.0.1:8443/")
		p.curl("--insecure", "--header", "Connection: close", "https://127.0.0.1:8443/")
		p.curl("--insecure", "--tls-max", "1.2", "https://127.0.0.1:8443/")
		p.curl("--insecure", "https://127.0.0.1:8444/")
		p.abAt("https://127.0.0.1:8443/", 50, "-c", "5")
		p.abAt("https://127.0.0.1:8443/", 100, "-c", "5", "-k")
		for version, port := range map[string]string{"-tls1_2": "8443", "-tls1_3": "8444"} {
			c := p.start("openssl", "s_client", version, "-quiet", "-connect", "127.0.0.1:"+port)
			c.tell("GET / HTTP/1.0\r\n\r")
			c.says("200 ")
			c.wait()
		}
		p.python("tlsclient.py", "8443").succeeds()
	}
	p.orderly(s)
	p.quits(g)
}
