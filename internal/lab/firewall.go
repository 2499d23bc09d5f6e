package lab

import (
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// firewall is a table of nftables in a namespace, over netlink: no nft program
// is needed. It ends with the namespace.
type firewall struct {
	ns    *Namespace
	table *nftables.Table
	chain *nftables.Chain
}

// hook is where a firewall looks at segments.
type hook struct {
	name string
	num  *nftables.ChainHook
}

var (
	hookInput  = hook{"input", nftables.ChainHookInput}
	hookOutput = hook{"output", nftables.ChainHookOutput}
)

// where says which port of a segment a rule compares.
type where uint32

const (
	sourcePort      where = 0 // offset in the TCP header
	destinationPort where = 2
)

// newFirewall makes a table for IPv4 and IPv6 with one chain at the hook. What
// no rule accepts or drops is accepted or, with closed, dropped.
func (n *Namespace) newFirewall(at hook, closed bool) (*firewall, error) {
	policy := nftables.ChainPolicyAccept
	if closed {
		policy = nftables.ChainPolicyDrop
	}
	f := &firewall{ns: n, table: &nftables.Table{Family: nftables.TableFamilyINet, Name: "lab-" + at.name}}
	f.chain = &nftables.Chain{
		Table: f.table, Name: at.name, Type: nftables.ChainTypeFilter,
		Hooknum: at.num, Priority: nftables.ChainPriorityFilter, Policy: &policy,
	}
	err := f.change(func(c *nftables.Conn) {
		c.AddTable(f.table)
		c.AddChain(f.chain)
	})
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, fmt.Errorf("making a firewall: %w (is the kernel module nf_tables loaded?)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("making a firewall: %w", err)
	}
	return f, nil
}

// add adds a rule for TCP segments with this port: to count them, and to drop
// or accept them.
func (f *firewall) add(w where, port uint16, verdict expr.VerdictKind) error {
	rule := &nftables.Rule{Table: f.table, Chain: f.chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: uint32(w), Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Counter{},
		&expr.Verdict{Kind: verdict},
	}}
	if err := f.change(func(c *nftables.Conn) { c.AddRule(rule) }); err != nil {
		return fmt.Errorf("adding a rule to the firewall: %w", err)
	}
	return nil
}

// matched returns how many segments the rules have matched.
func (f *firewall) matched() (uint64, error) {
	var n uint64
	err := f.ns.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		rules, err := c.GetRules(f.table, f.chain)
		for _, r := range rules {
			for _, e := range r.Exprs {
				if counter, ok := e.(*expr.Counter); ok {
					n += counter.Packets
				}
			}
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("reading the firewall's counters: %w", err)
	}
	return n, nil
}

// open removes the firewall.
func (f *firewall) open() error {
	if err := f.change(func(c *nftables.Conn) { c.DelTable(f.table) }); err != nil {
		return fmt.Errorf("removing the firewall: %w", err)
	}
	return nil
}

// change carries out changes in one transaction.
func (f *firewall) change(fn func(c *nftables.Conn)) error {
	return f.ns.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		fn(c)
		return c.Flush()
	})
}
