package lab

import (
	"context"
	"fmt"
	"net/netip"
)

// Case B: the client that never closes what its retired backends have closed.
var closeWaitCases = []Case{
	{
		ID:    "B",
		Title: "the CLOSE_WAIT leak",
		Story: "A service keeps a pool of connections to every backend instance. Instances are replaced; " +
			"the service never closes its connections to the retired ones, which stay in CLOSE_WAIT.",
		Prepare: func(ctx context.Context, env *Env) error { return preparePool(ctx, env, &pool{leak: true}) },
		Run:     run(retireBackends),
	},
	{
		ID:    "B-keepalive",
		Title: "the CLOSE_WAIT leak with SO_KEEPALIVE",
		Story: "As case B, with SO_KEEPALIVE on: the kernel will reap the connections, but only after hours.",
		Prepare: func(ctx context.Context, env *Env) error {
			return preparePool(ctx, env, &pool{leak: true, keepalive: true})
		},
		Run: run(retireBackends),
	},
	{
		ID:    "B-healthy",
		Title: "a pool that closes what its backends have closed",
		Story: "The same traffic as case B, but the service closes its connections as soon as it sees the " +
			"retired instance's FIN.",
		Prepare: func(ctx context.Context, env *Env) error { return preparePool(ctx, env, &pool{}) },
		Run:     run(retireBackends),
	},
}

// A pool of connections from one client to several backend instances.
type pool struct {
	leak      bool // the client never closes
	keepalive bool

	client    *Process
	instances map[int]*instance // by the last byte of their address, 127.0.0.N
	old       []*instance       // those that were retired in Prepare
}

type instance struct {
	*runningServer
	conns []connected // the client's connections to it
}

// preparePool makes the state that the tracer finds: instances 2, 3 and 5 with
// a pool of connections each, and instance 2 retired.
func preparePool(ctx context.Context, env *Env, p *pool) error {
	client, err := env.start(env.NS, "pool-client")
	if err != nil {
		return err
	}
	p.client, p.instances = client, make(map[int]*instance)
	env.stage = p
	for _, n := range []int{2, 3, 5} {
		if err := p.deploy(ctx, env, n); err != nil {
			return err
		}
	}
	p.old = []*instance{p.instances[2]}
	return p.retire(ctx, env, p.instances[2])
}

// deploy starts an instance and fills the client's pool of connections to it.
func (p *pool) deploy(ctx context.Context, env *Env, n int) error {
	srv, err := env.serve(ctx, fmt.Sprintf("backend-%d", n), serverSpec{
		Addr:    netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(n)}), 9000),
		Backlog: 511, Accept: true, OnData: echoData,
	})
	if err != nil {
		return err
	}
	conns, err := env.open(ctx, p.client, connectArgs{To: srv.Addr, N: env.Pool, KeepAlive: p.keepalive})
	if err != nil {
		return err
	}
	inst := &instance{runningServer: srv, conns: conns}
	p.instances[n] = inst
	env.Logf("%s[%d] holds %d connections to %s", p.client.Comm, p.client.PID, len(conns), srv.Addr)
	return p.use(ctx, env, inst)
}

// use exchanges a message on every connection to an instance.
func (p *pool) use(ctx context.Context, env *Env, inst *instance) error {
	return env.talk(ctx, p.client, exchangeArgs{FDs: descriptors(inst.conns), Write: "call", Read: 4})
}

// retire takes an instance out of service: it closes everything and exits.
func (p *pool) retire(ctx context.Context, env *Env, inst *instance) error {
	if err := inst.call(ctx, "retire", inst.id, nil); err != nil {
		return err
	}
	err := env.untilState(ctx, p.client, descriptors(inst.conns), stateCloseWait,
		fmt.Sprintf("the connections to %s are in CLOSE_WAIT", inst.Addr))
	if err != nil {
		return err
	}
	// As soon as it sees the FIN: the instance's process may take seconds to end.
	if !p.leak {
		if err := p.client.call(ctx, "close", closeArgs{FDs: descriptors(inst.conns)}, nil); err != nil {
			return err
		}
	}
	inst.Stop()
	env.Logf("%s[%d] has closed its connections and ended", inst.Comm, inst.PID)
	return nil
}

// retireBackends retires instance 3, whose connections are older than the
// tracer, and instance 4, whose connections it sees from the beginning.
// Instance 5 stays in service.
func retireBackends(ctx context.Context, env *Env, t *Truth) error {
	p, ok := env.stage.(*pool)
	if !ok {
		return fmt.Errorf("the case has not been prepared")
	}
	if err := p.deploy(ctx, env, 4); err != nil {
		return err
	}
	retired := append([]*instance{}, p.old...)
	for _, n := range []int{3, 4} {
		inst := p.instances[n]
		if err := p.retire(ctx, env, inst); err != nil {
			return err
		}
		retired = append(retired, inst)
	}
	if err := p.use(ctx, env, p.instances[5]); err != nil {
		return err
	}
	t.Client = p.client.party()
	t.Known["Tcp.PassiveOpens"] = uint64(env.Pool)
	t.Known["Tcp.ActiveOpens"] = uint64(env.Pool)
	if !p.leak {
		return nil
	}
	for _, inst := range retired {
		t.Expect = append(t.Expect, Expectation{
			Code: "close-wait-leak", Listener: inst.Addr, Process: p.client.party(), Count: len(inst.conns),
		})
		for _, c := range inst.conns {
			t.Victims = append(t.Victims, Victim{Client: c.Local, Server: inst.Addr})
		}
	}
	// The retired instances' ends are orphans in FIN_WAIT2: the same leak seen
	// from the other side.
	t.Allow = []string{"fin-wait-stuck", "half-open"}
	if err := sleep(ctx, env.CloseWait); err != nil {
		return err
	}
	return env.untilState(ctx, p.client, descriptorsOf(retired), stateCloseWait, "all of them are still in CLOSE_WAIT")
}

func descriptorsOf(instances []*instance) []int {
	var fds []int
	for _, inst := range instances {
		fds = append(fds, descriptors(inst.conns)...)
	}
	return fds
}
