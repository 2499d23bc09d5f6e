package programtest

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// cached has redis serve a pool, clients that it closes when they are idle,
// and clients that connect for each request.
func cached(p *place) {
	g := p.start("redis-server", "--bind", "127.0.0.1", "::1", "--port", fmt.Sprint(redisPort), "--daemonize", "no",
		"--dir", p.dir, "--save", "", "--timeout", "2")
	p.listens(redisPort)
	d := p.seconds()
	pool := p.python("redispool.py", fmt.Sprint(redisPort), "8", fmt.Sprint(d.Seconds()))
	for p.lasts() {
		out := p.run("redis-benchmark", "-q", "-p", fmt.Sprint(redisPort), "-c", "20", "-n", "2000", "-t", "get,set")
		out += p.run("redis-benchmark", "-q", "-p", fmt.Sprint(redisPort), "-c", "5", "-n", "300", "-k", "0", "-t", "get")
		out += p.run("redis-cli", "-h", "::1", "-p", fmt.Sprint(redisPort), "ping")
		assert.NotContains(p, out, "rror")
	}
	pool.waitFor(d)
	require.Zero(p, pool.status, pool.said())
	p.run("redis-cli", "-p", fmt.Sprint(redisPort), "shutdown", "nosave")
	g.wait()
}

// credential is of a user, for programs that will not run as root.
func (p *place) credential(name string) *syscall.Credential {
	p.Helper()
	u, err := user.Lookup(name)
	require.NoError(p, err)
	uid, err := strconv.Atoi(u.Uid)
	require.NoError(p, err)
	gid, err := strconv.Atoi(u.Gid)
	require.NoError(p, err)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

const pgbouncerConf = `
[databases]
postgres = host=127.0.0.1 port=5432
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = 6432
unix_socket_dir =
auth_type = trust
auth_file = DIR/users
pool_mode = transaction
default_pool_size = 5
max_client_conn = 100
server_idle_timeout = 1
server_lifetime = 5
ignore_startup_parameters = extra_float_digits
`

// database has PostgreSQL serve clients that stay, clients that connect for
// each transaction, and both through a pool.
func database(p *place) {
	who := p.credential("postgres")
	dir, err := os.MkdirTemp("", "tcptrace-postgres-") // the test's own directory is root's
	require.NoError(p, err)
	p.Cleanup(func() { assert.NoError(p, os.RemoveAll(dir)) })
	require.NoError(p, os.Chown(dir, int(who.Uid), int(who.Gid)))
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	require.NoError(p, err)
	require.NotEmpty(p, found, "PostgreSQL is not installed (hint: scripts/setup test installs what the tests need)")
	bin := filepath.Dir(found[len(found)-1])
	data := filepath.Join(dir, "data")
	p.dir = dir
	p.startAs(who, filepath.Join(bin, "initdb"), "-D", data, "-U", "postgres", "--auth=trust", "--no-sync", "--no-instructions").succeeds()
	g := p.startAs(who, filepath.Join(bin, "postgres"), "-D", data, "-c", "fsync=off", "-c", "listen_addresses=127.0.0.1,::1",
		"-c", "unix_socket_directories=", "-c", "shared_buffers=32MB", "-c", "max_connections=40")
	p.listens(5432)
	g.says("ready to accept connections")
	conf := filepath.Join(dir, "pgbouncer.ini")
	require.NoError(p, os.WriteFile(conf, []byte(strings.ReplaceAll(pgbouncerConf, "DIR", dir)), 0o644))
	require.NoError(p, os.WriteFile(filepath.Join(dir, "users"), []byte("\"postgres\" \"\"\n"), 0o644))
	b := p.startAs(who, "pgbouncer", conf)
	p.listens(6432)

	const direct, pooled = "5432", "6432"
	pgbench := func(host, port string, args ...string) *program {
		return p.start(filepath.Join(bin, "pgbench"), append([]string{"-h", host, "-p", port, "-U", "postgres", "--no-vacuum"}, append(args, "postgres")...)...)
	}
	pgbench("127.0.0.1", direct, "-i", "-s", "1", "-q").succeeds()
	for p.lasts() {
		loads := []*program{
			pgbench("127.0.0.1", direct, "-c", "5", "-T", "2", "-S", "--rate", "500"),
			pgbench("::1", direct, "-c", "2", "-t", "20", "-S", "-C"),
			pgbench("127.0.0.1", pooled, "-c", "10", "-T", "2", "-S", "--rate", "300"),
			pgbench("127.0.0.1", pooled, "-c", "2", "-t", "20", "-S", "-C"),
			p.start(filepath.Join(bin, "psql"), "-h", "127.0.0.1", "-p", direct, "-U", "postgres", "-c", "select 1"),
		}
		for _, g := range loads {
			g.succeeds()
		}
		time.Sleep(1500 * time.Millisecond) // the pool lets go of idle servers
	}
	p.signal(b.pid, syscall.SIGINT)
	b.wait()
	p.orderly(g) // "smart" shutdown
}

// bulk has iperf3 move much data: both ways, in parallel, over both families.
func bulk(p *place) {
	const port = "5201"
	g := p.start("iperf3", "--server", "--port", port)
	p.listens(5201)
	for p.lasts() {
		for _, args := range [][]string{
			{"-c", "127.0.0.1"},
			{"-c", "127.0.0.1", "--reverse"},
			{"-c", "::1", "--parallel", "4"},
			{"-c", "127.0.0.1", "--bidir"},
			{"-c", "127.0.0.1", "--bytes", "5M"},
		} {
			args = append(args, "--port", port, "--bitrate", "400M")
			if args[2] != "--bytes" {
				args = append(args, "--time", "1")
			}
			p.run("iperf3", args...)
			time.Sleep(200 * time.Millisecond)
		}
	}
	p.orderly(g)
}
