package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/lab"
)

const docs = "../../docs/cases"

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(docs, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestPages: there is a page for each case from A to N, in the index and with
// its demos, and a place for each verdict on one of them.
func TestPages(t *testing.T) {
	index := read(t, "README.md")
	var all strings.Builder
	for letter := 'a'; letter <= 'n'; letter++ {
		name := string(letter) + ".md"
		text := read(t, name)
		all.WriteString(text)
		if !strings.Contains(index, "("+name+")") {
			t.Errorf("%s is not in the index", name)
		}
		for _, heading := range []string{"The symptom", "What tcptrace says", "How to read it", "How to fix it"} {
			if !strings.Contains(text, "\n## "+heading+"\n") {
				t.Errorf("%s has no %q", name, heading)
			}
		}
		p, err := parse(text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if p.String() != text {
			t.Errorf("%s would not be written as it was read", name)
		}
		own := false
		for _, b := range p.blocks() {
			c, err := lab.Find(b.demo)
			if err != nil || c.ID != b.demo {
				t.Errorf("%s: no case %q", name, b.demo)
			}
			own = own || strings.HasPrefix(b.demo, strings.ToUpper(string(letter)))
			if len(b.said) == 0 || b.output == "" {
				t.Errorf("%s: demo %s was never run: make cases", name, b.demo)
			}
			for _, s := range b.said {
				if !slices.ContainsFunc(diagnose.Catalogue(), func(d diagnose.Doc) bool { return d.Code == s.code }) {
					t.Errorf("%s: there is no verdict %s", name, s.code)
				}
				if !strings.Contains(b.output, s.code) {
					t.Errorf("%s: demo %s says %s, and does not show it", name, b.demo, s.code)
				}
			}
		}
		if !own {
			t.Errorf("%s shows no demo of its case", name)
		}
	}
	for _, d := range diagnose.Catalogue() {
		if !strings.Contains(all.String(), d.Code) {
			t.Errorf("%s is on no page", d.Code)
		}
	}
	// Whatever is offered to be run exists.
	for _, m := range regexp.MustCompile(`tcptrace demo ([A-Z][-A-Za-z]*)`).FindAllStringSubmatch(all.String()+index, -1) {
		if c, err := lab.Find(m[1]); err != nil || c.ID != m[1] {
			t.Errorf("no case %q", m[1])
		}
	}
}

func TestSkeleton(t *testing.T) {
	for story, want := range map[string]string{
		"relay[55] reconnected 57 times in 320 ms to 127.0.0.1:8080, each closed by the peer within 0.5 ms":     "relay[#] reconnected # times in # to #, each closed by the peer within #",
		"relay[1234] reconnected 10 times in 1.6 s to [2001:db8::1]:8080, each closed by the peer within 11 µs": "relay[#] reconnected # times in # to #, each closed by the peer within #",
		"36 sockets to 127.0.0.2:9000 in CLOSE_WAIT, the oldest for at least 2.1 s":                             "# socket to # in CLOSE_WAIT, the oldest for #",
		"1 socket to 127.0.0.2:9000 in CLOSE_WAIT, the oldest for 3 h":                                          "# socket to # in CLOSE_WAIT, the oldest for #",
		"SYN-ACK sent again once, then the handshake completed":                                                 "SYN-ACK sent again # times, then the handshake completed",
		"SYN-ACK sent again 3 times, then the handshake completed":                                              "SYN-ACK sent again # times, then the handshake completed",
	} {
		if got := skeleton(story); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestCompare(t *testing.T) {
	overflow := said{"error", "accept-queue-overflow", "listener", "SYN dropped"}
	other := said{"error", "accept-queue-overflow", "listener", "final ACK dropped"}
	worse := said{"warning", "accept-queue-overflow", "listener", "SYN dropped"}
	reset := said{"info", "reset-received", "peer", "the peer reset it"}
	for _, c := range []struct {
		what      string
		page, run []said
		same      bool
	}{
		{"the same", []said{overflow, reset}, []said{reset, overflow}, true},
		{"one of several stories", []said{overflow, other}, []said{overflow}, true},
		{"another story", []said{overflow}, []said{other}, false},
		{"another severity", []said{overflow}, []said{worse}, false},
		{"one less", []said{overflow, reset}, []said{overflow}, false},
		{"one more", []said{overflow}, []said{overflow, reset}, false},
		{"nothing", []said{overflow}, nil, false},
	} {
		if err := compare(c.page, c.run); (err == nil) != c.same {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

func TestStructure(t *testing.T) {
	got, err := structure([]byte(`{"type":"start"}
{"type":"verdict","code":"reset-sent","severity":"info","story":"app[7] closed 1 connection","subject":{"kind":"listener","name":"0.0.0.0:80"}}
{"type":"verdict","code":"reset-sent","severity":"warning","story":"app[7] closed 3 connections","subject":{"kind":"listener","name":"0.0.0.0:80"}}
{"type":"verdict","code":"reset-sent","severity":"warning","story":"app[8] closed 2 connections","subject":{"kind":"listener","name":"0.0.0.0:81"}}
`))
	want := said{"warning", "reset-sent", "listener", "app[#] closed # connection"}
	if err != nil || !slices.Equal(got, []said{want}) {
		t.Errorf("%v, %v", got, err)
	}
	if again, err := parseSaid(want.String()); err != nil || again != want {
		t.Errorf("%v, %v", again, err)
	}
	if _, err := structure([]byte("not JSON\n")); err == nil {
		t.Error("took what is not JSON")
	}
}

func TestShown(t *testing.T) {
	out := `case X: a title
tcptrace devel on host

07:51:29.738 error   the queue was full
  accept-queue-overflow
  listener 0.0.0.0:8081 server[26146], netns 4026532178  1 so far, certain
  example 198.18.0.2:34672 -> 198.18.0.1:8081

07:51:29.838 error   another queue was full
  accept-queue-overflow
  listener 0.0.0.0:8082 other[26147], netns 4026532178  1 so far, certain

07:51:31.000 summary 1.8 s: 64 connections, 160 events, none lost

  verdicts
     1  error    accept-queue-overflow
                 listener 0.0.0.0:8081 server[26146], netns 4026532178
     1  error    accept-queue-overflow
                 listener 0.0.0.0:8082 other[26147], netns 4026532178
     1  error    accept-queue-overflow
                 listener 0.0.0.0:8083 other[26147], netns 4026532178
  counters               kernel   explained
      ListenOverflows         3           3
  cost  0.00% of a processor

case X: what happened was named.
`
	want := `03:00:00.000 error   the queue was full
  accept-queue-overflow
  listener 0.0.0.0:8081 server[10001], netns 4026532201  1 so far, certain
  example 198.18.0.2:40001 -> 198.18.0.1:8081

[...]
03:00:01.262 summary 1.8 s: 64 connections, 160 events, none lost

  verdicts
     1  error    accept-queue-overflow
                 listener 0.0.0.0:8081 server[10001], netns 4026532201
     1  error    accept-queue-overflow
                 listener 0.0.0.0:8082 other[10002], netns 4026532201
    [...]
  counters               kernel   explained
      ListenOverflows         3           3
`
	if got := shown(out); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}
