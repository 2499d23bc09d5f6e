package programtest

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/render"
)

const (
	redisPort = 6379
	redisAddr = "127.0.0.1:6379"
)

func (p *place) redis(maxclients int) *program {
	p.Helper()
	g := p.start("redis-server", "--bind", "127.0.0.1", "--port", fmt.Sprint(redisPort), "--daemonize", "no",
		"--dir", p.dir, "--save", "", "--appendonly", "no", "--maxclients", fmt.Sprint(maxclients))
	p.listens(redisPort)
	return g
}

const (
	holders   = 8  // connections that are held
	newcomers = 20 // that are tried beyond these, by each of two kinds of clients
)

// crowd holds connections, and has one client reconnect and many clients
// connect once each, all of which are to be served or refused. It returns the
// one that reconnects.
func crowd(p *place, manner string) (reconnecting *program) {
	p.Helper()
	hold := p.python("hold.py", fmt.Sprint(redisPort), fmt.Sprint(holders))
	hold.says(fmt.Sprintf("holding %d", holders))
	reconnecting = p.python("reconnect.py", fmt.Sprint(redisPort), fmt.Sprint(newcomers), manner)
	reconnecting.says(fmt.Sprintf("%s %d", manner, newcomers))
	reconnecting.wait()
	answered := 0
	for range newcomers {
		cli := p.start("redis-cli", "-p", fmt.Sprint(redisPort), "ping")
		cli.wait()
		answered += strings.Count(cli.said(), "PONG")
	}
	require.Equal(p, map[string]int{"served": newcomers, "refused": 0}[manner], answered)
	return reconnecting
}

// TestRedisFull has redis refuse clients beyond its limit: it accepts, writes
// why, and closes.
func TestRedisFull(t *testing.T) {
	p := newPlace(t)
	p.watch(diagnose.Options{})
	g := p.redis(holders)
	require.Equal(t, "redis-server", g.comm())
	reconnecting := crowd(p, "refused")

	got := p.end()
	// What the clients sent meets a closed socket: true as well.
	p.forbid(got, "immediate-close", "reconnect-loop", "reset-sent", "reset-received")
	v := only(p, got, "immediate-close", g.pid)
	assert.Equal(t, diagnose.Error, v.Severity)
	assert.Equal(t, "redis-server", v.Process.Comm)
	assert.Equal(t, diagnose.Subject{Kind: "listener", Name: redisAddr}, v.Subject)
	// redis-cli sends at once, and may close when it has read the refusal,
	// before redis does.
	first := 0
	for _, c := range served(p) {
		if c.ClosedBy == "local" {
			first++
		}
	}
	assert.GreaterOrEqual(t, first, newcomers)
	assert.EqualValues(t, first, v.Count)
	assert.EqualValues(t, holders, v.Evidence.Get("plateau"))
	assert.EqualValues(t, holders, v.Evidence.Get("live_connections"))
	assert.EqualValues(t, len("-ERR max number of clients reached\r\n"), v.Evidence.Get("bytes_written"))
	v = only(p, got, "reconnect-loop", reconnecting.pid)
	assert.EqualValues(t, newcomers, v.Count)
	assert.Equal(t, redisAddr, v.Evidence.Get("destination"))
	p.Logf("%d of %d closed by redis first", first, 2*newcomers)
}

// TestRedisRoomy is the healthy twin.
func TestRedisRoomy(t *testing.T) {
	p := newPlace(t)
	p.watch(diagnose.Options{})
	p.redis(1000)
	crowd(p, "served")
	p.silent()
}

// TestKilledIdle kills a server whose connections are idle: the kernel closes
// them in its stead, as orderly as it would itself.
func TestKilledIdle(t *testing.T) {
	p := newPlace(t)
	p.watch(diagnose.Options{})
	g := p.redis(1000)
	client := p.python("hold.py", fmt.Sprint(redisPort), fmt.Sprint(holders))
	client.says(fmt.Sprintf("holding %d", holders))
	p.signal(g.pid, syscall.SIGKILL)
	g.wait()
	client.tell("end")
	client.says(fmt.Sprintf("ended %d FIN 0 RST", holders))
	p.silent()
	ends := 0
	for _, c := range p.w.Connections {
		ends++
		if c.Role == "server" {
			assert.Equal(t, uint32(g.pid), c.Process.PID)
			assert.Equal(t, "local", c.ClosedBy, c.Story)
		} else {
			assert.Equal(t, uint32(client.pid), c.Process.PID)
			assert.Equal(t, "remote", c.ClosedBy, c.Story)
		}
	}
	assert.Equal(t, 2*holders, ends)
}

// TestKilledBusy kills a server with requests that it has not read and
// connections that it has not accepted: the kernel resets both.
func TestKilledBusy(t *testing.T) {
	p := newPlace(t)
	p.watch(diagnose.Options{})
	g := p.redis(1000)
	client := p.python("hold.py", fmt.Sprint(redisPort), fmt.Sprint(holders))
	client.says(fmt.Sprintf("holding %d", holders))
	p.signal(g.pid, syscall.SIGSTOP)
	client.tell("send")
	client.says("sent")
	early := p.start("redis-cli", "-p", fmt.Sprint(redisPort), "ping")
	p.until("redis-cli waits to be accepted", func() bool { return p.queue(redisPort) == 1 })
	p.signal(g.pid, syscall.SIGKILL)
	g.wait()
	client.tell("end")
	client.says(fmt.Sprintf("ended 0 FIN %d RST", holders))
	early.wait()

	got := p.end()
	p.forbid(got, "reset-sent", "reset-received")
	resets := uint64(0)
	for _, v := range got {
		if v.Code != "reset-sent" {
			assert.Equal(t, diagnose.Info, v.Severity, v.Story)
			continue
		}
		require.NotNil(t, v.Process)
		assert.EqualValues(t, g.pid, v.Process.PID)
		assert.Equal(t, "redis-server", v.Process.Comm)
		switch v.Count {
		case holders:
			assert.Equal(t, "the process ended with data unread", v.Evidence.Get("cause"))
			assert.EqualValues(t, len("ECHO \r\n")+100, v.Evidence.Get("unread_bytes"))
		case 1:
			assert.Equal(t, "the listening process ended before the connection was accepted", v.Evidence.Get("cause"))
		default:
			t.Errorf("reset-sent of %d connections: %s", v.Count, v.Story)
		}
		resets += v.Count
	}
	assert.EqualValues(t, holders+1, resets)
	p.w.Tell(t, func(c *render.Connection) bool { return t.Failed() })
}
