package timeline

import (
	"math"
	"testing"
	"time"
)

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                            "0 ms",
		400 * time.Microsecond:       "0.4 ms",
		50 * time.Microsecond:        "50 µs",
		9900 * time.Microsecond:      "9.9 ms",
		12400 * time.Microsecond:     "12 ms",
		time.Second:                  "1 s",
		1500 * time.Millisecond:      "1.5 s",
		90 * time.Second:             "90 s",
		127 * time.Second:            "2.1 min",
		3 * time.Hour:                "3 h",
		3*time.Hour + 30*time.Minute: "3.5 h",
		10 * 24 * time.Hour:          "10 days",
		-time.Second:                 "-1 s",
		math.MaxInt64:                "106752 days",
		math.MinInt64:                "-106752 days",
	} {
		if got := Duration(d); got != want {
			t.Errorf("%d: %q, want %q", d, got, want)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"nginx":             "nginx",
		"a b":               "a b",
		"日本":                "日本",
		"x\x1b[31m":         `x\x1b[31m`,
		"a\nb":              `a\x0ab`,
		"\xff":              `\xff`,
		`back\slash`:        `back\x5cslash`,
		"rtl\u202eoverride": `rtl\xe2\x80\xaeoverride`,
	} {
		if got := Printable(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestSeveral(t *testing.T) {
	for n, want := range map[int]string{0: "0 bytes", 1: "1 byte", 2: "2 bytes"} {
		if got := several(n, "byte"); got != want {
			t.Errorf("several(%d): %q, want %q", n, got, want)
		}
	}
}
