package filter

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/tcptrace/tcptrace/tracer/event"
)

var env = Environment{
	Codes: []string{"accept-queue-overflow", "connect-refused", "reset-sent"},
	Netns: func(s string) (uint32, error) {
		if s == "blue" {
			return 4026532000, nil
		}
		return 0, fmt.Errorf("network namespace %q: no such network namespace", s)
	},
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name  string
		flags Flags
		want  Filter
	}{
		{"nothing", Flags{}, Filter{}},
		{"ports", Flags{Port: []string{"80,443", "80"}, LocalPort: []string{" 1 , 65535"}, RemotePort: []string{"22"}},
			Filter{Ports: []uint16{80, 443}, LocalPorts: []uint16{1, 65535}, RemotePorts: []uint16{22}}},
		{"addresses", Flags{Addr: []string{"10.1.2.3/8,::1", "[2001:db8::1]", "::ffff:10.0.0.1", "::ffff:10.0.0.0/104", "192.0.2.7"}},
			Filter{Addrs: []netip.Prefix{
				netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("2001:db8::1/128"),
				netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("192.0.2.7/32")}}},
		{"processes", Flags{PID: []string{"1,4194304"}, Comm: []string{"nginx", "containerd-shim-runc-v2"}},
			Filter{PIDs: []uint32{1, 4194304}, Comms: []string{"nginx", "containerd-shim"}}},
		{"namespace", Flags{Netns: []string{"blue"}}, Filter{Netns: []uint32{4026532000}}},
		{"cgroups", Flags{Cgroup: []string{"/a/b/", "/sys/fs/cgroup/system.slice", "x", "/", "/sys/fs/cgroupish"}},
			Filter{Cgroups: []string{"/a/b", "/system.slice", "/x", "/", "/sys/fs/cgroupish"}}},
		{"codes", Flags{Code: []string{"reset-sent,connect-refused"}}, Filter{Codes: []string{"reset-sent", "connect-refused"}}},
		{"states", Flags{State: []string{"ESTAB", "established", "CLOSE_WAIT,fin-wait1", "Syn-Recv"}},
			Filter{States: []event.State{event.StateEstablished, event.StateCloseWait, event.StateFinWait1, event.StateSynRecv}}},
	} {
		got, err := Parse(c.flags, env)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v; want %+v", c.name, got, err, c.want)
		}
		if got.Empty() != reflect.DeepEqual(c.want, Filter{}) {
			t.Errorf("%s: Empty() = %v", c.name, got.Empty())
		}
	}
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct {
		flags       Flags
		flag, value string
		hint        string
	}{
		{Flags{Port: []string{"http"}}, "port", "http", "1 to 65535"},
		{Flags{Port: []string{"80,65536"}}, "port", "65536", "1 to 65535"},
		{Flags{Port: []string{"0"}}, "port", "0", "1 to 65535"},
		{Flags{LocalPort: []string{"-1"}}, "lport", "-1", "1 to 65535"},
		{Flags{RemotePort: []string{"80,,81"}}, "rport", "80,,81", "commas"},
		{Flags{Addr: []string{""}}, "addr", "", "commas"},
		{Flags{Addr: []string{"10.0.0.1:80"}}, "addr", "10.0.0.1:80", "--addr 10.0.0.1 --port 80"},
		{Flags{Addr: []string{"10.0.0.0/33"}}, "addr", "10.0.0.0/33", "192.0.2.0/24"},
		{Flags{Addr: []string{"example.com"}}, "addr", "example.com", "192.0.2.0/24"},
		{Flags{Addr: []string{"fe80::1%eth0"}}, "addr", "fe80::1%eth0", "leave out %eth0"},
		{Flags{Addr: []string{"::ffff:0:0/90"}}, "addr", "::ffff:0:0/90", "192.0.2.0/24"},
		{Flags{PID: []string{"nginx"}}, "pid", "nginx", "--comm"},
		{Flags{PID: []string{"4294967295"}}, "pid", "4294967295", "--comm"},
		{Flags{Netns: []string{"red"}}, "netns", "red", "ip netns"},
		{Flags{Cgroup: []string{"/a//b"}}, "cgroup", "/a//b", "/system.slice"},
		{Flags{Code: []string{"conect-refused"}}, "code", "conect-refused", "did you mean connect-refused?"},
		{Flags{Code: []string{"x"}}, "code", "x", "tcptrace explain"},
		{Flags{State: []string{"close-wiat"}}, "state", "close-wiat", "did you mean close-wait?"},
		{Flags{State: []string{"9"}}, "state", "9", "states are"},
	} {
		f, err := Parse(c.flags, env)
		var e *Error
		if !errors.As(err, &e) || e.Flag != c.flag || e.Value != c.value || !strings.Contains(e.Hint, c.hint) || e.Problem == "" {
			t.Errorf("%+v: %#v, want flag %s, value %q, hint with %q", c.flags, err, c.flag, c.value, c.hint)
		}
		if !f.Empty() {
			t.Errorf("%+v: an error and the filter %+v", c.flags, f)
		}
	}
	if _, err := Parse(Flags{Netns: []string{"4026531840"}, Code: []string{"made-up"}}, Environment{}); err != nil {
		t.Errorf("without an environment: %v", err)
	}
	if _, err := Parse(Flags{Netns: []string{"blue"}}, Environment{}); err == nil {
		t.Error("a namespace's name was accepted without a way to resolve it")
	}
}

func conn(change func(*Conn)) *Conn {
	c := &Conn{
		Netns: 7, Local: netip.MustParseAddrPort("10.0.0.1:8080"), Remote: netip.MustParseAddrPort("192.0.2.9:40000"),
		PID: 812, Comm: "nginx", Cgroup: "/system.slice/nginx.service", State: event.StateClose, Codes: []string{"reset-sent"},
	}
	if change != nil {
		change(c)
	}
	return c
}

func TestMatchConn(t *testing.T) {
	prefix := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	for _, c := range []struct {
		name   string
		filter Filter
		change func(*Conn)
		want   bool
	}{
		{"everything", Filter{}, nil, true},
		{"everything unknown", Filter{}, func(c *Conn) { *c = Conn{} }, true},
		{"local port", Filter{Ports: []uint16{1, 8080}}, nil, true},
		{"remote port", Filter{Ports: []uint16{40000}}, nil, true},
		{"other port", Filter{Ports: []uint16{80}}, nil, false},
		{"lport", Filter{LocalPorts: []uint16{8080}}, nil, true},
		{"lport is the remote one", Filter{LocalPorts: []uint16{40000}}, nil, false},
		{"rport", Filter{RemotePorts: []uint16{40000}}, nil, true},
		{"rport is the local one", Filter{RemotePorts: []uint16{8080}}, nil, false},
		{"local port not chosen yet", Filter{LocalPorts: []uint16{5}}, func(c *Conn) { c.Local = netip.MustParseAddrPort("10.0.0.1:0") }, true},
		{"listener by port", Filter{Ports: []uint16{8080}}, func(c *Conn) { c.Remote = netip.AddrPort{} }, true},
		{"another listener by port", Filter{Ports: []uint16{81}}, func(c *Conn) { c.Remote = netip.AddrPort{} }, false},
		{"listener by client's address", Filter{Addrs: prefix("192.0.2.0/24")}, func(c *Conn) { c.Remote = netip.AddrPort{} }, true},
		{"local address", Filter{Addrs: prefix("10.0.0.0/8")}, nil, true},
		{"remote address", Filter{Addrs: prefix("192.0.2.9/32")}, nil, true},
		{"mapped address", Filter{Addrs: prefix("192.0.2.9/32")}, func(c *Conn) { c.Remote = netip.MustParseAddrPort("[::ffff:192.0.2.9]:1") }, true},
		{"zone", Filter{Addrs: prefix("fe80::/10")}, func(c *Conn) { c.Remote = netip.MustParseAddrPort("[fe80::1%eth0]:1") }, true},
		{"other address", Filter{Addrs: prefix("172.16.0.0/12")}, nil, false},
		{"netns", Filter{Netns: []uint32{7}}, nil, true},
		{"other netns", Filter{Netns: []uint32{8}}, nil, false},
		{"pid", Filter{PIDs: []uint32{812}}, nil, true},
		{"unknown pid", Filter{PIDs: []uint32{812}}, func(c *Conn) { c.PID = 0 }, false},
		{"comm", Filter{Comms: []string{"nginx"}}, nil, true},
		{"comm is not a prefix", Filter{Comms: []string{"ngin"}}, nil, false},
		{"cgroup", Filter{Cgroups: []string{"/system.slice/nginx.service"}}, nil, true},
		{"cgroup above", Filter{Cgroups: []string{"/system.slice"}}, nil, true},
		{"root cgroup", Filter{Cgroups: []string{"/"}}, nil, true},
		{"cgroup is not a path above", Filter{Cgroups: []string{"/system.slice/nginx"}}, nil, false},
		{"unknown cgroup", Filter{Cgroups: []string{"/"}}, func(c *Conn) { c.Cgroup = "" }, false},
		{"code", Filter{Codes: []string{"reset-sent"}}, nil, true},
		{"no code", Filter{Codes: []string{"reset-sent"}}, func(c *Conn) { c.Codes = nil }, false},
		{"state", Filter{States: []event.State{event.StateClose}}, nil, true},
		{"other state", Filter{States: []event.State{event.StateListen}}, nil, false},
		{"both kinds", Filter{Ports: []uint16{8080}, PIDs: []uint32{812}}, nil, true},
		{"one kind of two", Filter{Ports: []uint16{8080}, PIDs: []uint32{1}}, nil, false},
	} {
		if got := c.filter.MatchConn(conn(c.change)); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// TestMatchBound: what has no other end does not have the one that is asked for.
func TestMatchBound(t *testing.T) {
	prefix := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	for _, c := range []struct {
		name   string
		filter Filter
		local  string
		want   bool
	}{
		{"everything", Filter{}, "127.0.0.1:80", true},
		{"rport", Filter{RemotePorts: []uint16{80}}, "127.0.0.1:80", false},
		{"rport, lport", Filter{RemotePorts: []uint16{5432}, LocalPorts: []uint16{80}}, "127.0.0.1:80", false},
		{"lport", Filter{LocalPorts: []uint16{80}}, "127.0.0.1:80", true},
		{"other lport", Filter{LocalPorts: []uint16{81}}, "127.0.0.1:80", false},
		{"port", Filter{Ports: []uint16{80}}, "127.0.0.1:80", true},
		{"other port", Filter{Ports: []uint16{81}}, "127.0.0.1:80", false},
		{"any port wanted", Filter{LocalPorts: []uint16{81}}, "127.0.0.1:0", true},
		{"its address", Filter{Addrs: prefix("127.0.0.0/8")}, "127.0.0.1:80", true},
		{"other address", Filter{Addrs: prefix("10.0.0.0/8")}, "127.0.0.1:80", false},
		{"all addresses", Filter{Addrs: prefix("10.0.0.0/8")}, "0.0.0.0:80", true},
		{"all addresses, IPv6", Filter{Addrs: prefix("10.0.0.0/8")}, "[::]:80", true},
		{"other netns", Filter{Netns: []uint32{8}}, "127.0.0.1:80", false},
	} {
		local := netip.MustParseAddrPort(c.local)
		if got := c.filter.MatchBound(7, local); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
		if c.want && !c.filter.MatchTuple(7, local, netip.AddrPort{}) {
			t.Errorf("%s: it is shown, but not tracked", c.name)
		}
	}
}

func TestNearest(t *testing.T) {
	words := []string{"connect-refused", "connect-timeout", "reset-sent", "port", "A"}
	for typed, want := range map[string]string{
		"connect-refuse": "connect-refused", "CONNECT-REFUSED": "connect-refused", "reset-snt": "reset-sent", "reset": "reset-sent",
		"prot": "port", "pot": "port", "pox": "", "connect-erfused": "connect-refused",
		"banana": "", "": "", "z": "", strings.Repeat("x", 1000): "",
	} {
		if got := Nearest(typed, words); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", typed, got, want)
		}
	}
}

// FuzzParse checks that no input panics, that an error is typed and says what
// to do, and that a filter that was accepted means something.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"80", "10.0.0.0/8", "::ffff:1.2.3.4/120", "fe80::1%x", "close-wait", "/sys/fs/cgroup", "a,b,,c", "0x10", "\x00", "١"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		one := []string{s}
		for _, flags := range []Flags{
			{Port: one}, {LocalPort: one}, {RemotePort: one}, {Addr: one}, {PID: one},
			{Comm: one}, {Netns: one}, {Cgroup: one}, {Code: one}, {State: one},
		} {
			for _, env := range []Environment{env, {}} {
				got, err := Parse(flags, env)
				var e *Error
				if err != nil && (!errors.As(err, &e) || e.Flag == "" || e.Problem == "" || e.Hint == "" || e.Error() == "") {
					t.Fatalf("%+v: %#v", flags, err)
				}
				if (err == nil) == got.Empty() {
					t.Fatalf("%+v: %+v, %v", flags, got, err)
				}
				for _, p := range got.Addrs {
					if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
						t.Fatalf("%q: the network %v", s, p)
					}
					c := conn(func(c *Conn) { c.Local = netip.AddrPortFrom(p.Addr(), 1) })
					if !got.MatchConn(c) {
						t.Fatalf("%q: %v does not match itself", s, p)
					}
				}
			}
		}
	})
}
