package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/render"
)

// codes lists the verdicts that exist.
func codes() []string {
	var list []string
	for _, d := range diagnose.Catalogue() {
		list = append(list, d.Code)
	}
	return list
}

func newExplain(u *ui) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain [CODE]",
		Short: "What a verdict means: its evidence, its fix and the kernel's part in it",
		Long: `What a verdict means, the evidence that comes with it, what to do about it, and
the kernel's counters and source behind it. Without CODE, lists the verdicts.`,
		Example: "  tcptrace explain accept-queue-overflow",
		Args:    atMost(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return codes(), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			all := diagnose.Catalogue()
			if len(args) == 0 {
				return u.listVerdicts(all)
			}
			for _, d := range all {
				if d.Code == args[0] {
					return u.explain(d)
				}
			}
			hint := "`tcptrace explain` lists the codes"
			if near := filter.Nearest(args[0], codes()); near != "" {
				hint = fmt.Sprintf("did you mean %s? %s", near, hint)
			}
			return usage(hint, "no such verdict: %q", args[0])
		},
	}
	u.outputFlag(cmd)
	return cmd
}

// doc is a verdict's description as JSON.
type doc struct {
	Type     string   `json:"type"`
	Code     string   `json:"code"`
	Severity string   `json:"severity"`
	Summary  string   `json:"summary"`
	Meaning  string   `json:"meaning"`
	Counts   string   `json:"counts"`
	Evidence []docKey `json:"evidence"`
	Fix      []string `json:"fix"`
	Counters []string `json:"counters"`
	Source   []string `json:"source"`
	Cases    []string `json:"cases"`
}

// letters tells on which pages of docs/cases a verdict is met, the first one
// being its own. `tcptrace demo LETTER` brings that case about.
var letters = map[string]string{
	"accept-queue-overflow": "CD", "backlog-clamped": "D", "syn-queue-overflow": "E", "syn-scan": "E",
	"final-ack-lost": "F", "handshake-timeout": "F", "connect-refused": "K", "connect-timeout": "KD",
	"port-closed": "K", "local-drop": "K", "port-exhaustion": "G", "bind-conflict": "H",
	"immediate-close": "A", "reconnect-loop": "A", "close-wait-leak": "B", "half-open": "IAD",
	"keepalive-timeout": "I", "retransmission-timeout": "I", "fin-wait-stuck": "J", "time-wait-pileup": "G",
	"paws-rejected": "L", "reset-sent": "M", "reset-received": "M", "zero-window": "N", "slow-accept": "N",
	"aborted-on-memory": "M",
}

// casesOf lists the letters of a verdict's cases.
func casesOf(code string) []string {
	list := []string{}
	for _, l := range letters[code] {
		list = append(list, string(l))
	}
	return list
}

type docKey struct {
	Key  string `json:"key"`
	Unit string `json:"unit"`
	Text string `json:"text"`
}

func toDoc(d diagnose.Doc) doc {
	out := doc{
		Type: "explain", Code: d.Code, Severity: string(d.Severity), Summary: d.Summary, Meaning: d.Meaning, Counts: d.Counts,
		Cases: casesOf(d.Code), Evidence: []docKey{}, Fix: append([]string{}, d.Fix...), Counters: append([]string{}, d.Counters...), Source: append([]string{}, d.Source...),
	}
	for _, k := range d.Evidence {
		out.Evidence = append(out.Evidence, docKey(k))
	}
	return out
}

func (u *ui) listVerdicts(all []diagnose.Doc) error {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	width := 0
	for _, d := range all {
		width = max(width, len(d.Code))
	}
	for _, d := range all {
		if u.output == "json" {
			if err := enc.Encode(toDoc(d)); err != nil {
				return err
			}
			continue
		}
		hang(&b, fmt.Sprintf("%s  %s  ", render.Pad(d.Code, width), render.Pad(string(d.Severity), 7)), d.Summary, u.width())
	}
	_, err := fmt.Fprint(u.out, b.String())
	return err
}

func (u *ui) explain(d diagnose.Doc) error {
	if u.output == "json" {
		return json.NewEncoder(u.out).Encode(toDoc(d))
	}
	var b strings.Builder
	w := u.width()
	hang(&b, fmt.Sprintf("%s (%s): ", d.Code, d.Severity), d.Summary, w)
	for p := range strings.SplitSeq(d.Meaning, "\n\n") {
		b.WriteByte('\n')
		hang(&b, "", p, w)
	}
	section := func(title string) { fmt.Fprintf(&b, "\n%s\n", title) }
	if d.Counts != "" {
		section("count")
		hang(&b, "  ", d.Counts, w)
	}
	if len(d.Evidence) > 0 {
		section("evidence")
		width := 0
		for _, k := range d.Evidence {
			width = max(width, len(label(k)))
		}
		for _, k := range d.Evidence {
			hang(&b, "  "+render.Pad(label(k), width)+"  ", k.Text, w)
		}
	}
	for _, part := range []struct {
		title string
		lines []string
	}{{"fix", d.Fix}, {"counters that move with it", d.Counters}, {"kernel source", d.Source}} {
		if len(part.lines) > 0 {
			section(part.title)
		}
		for _, l := range part.lines {
			hang(&b, "  - ", l, w)
		}
	}
	if cases := casesOf(d.Code); len(cases) > 0 {
		section("cases")
		for _, l := range cases {
			hang(&b, "  - ", fmt.Sprintf("docs/cases/%s.md; `tcptrace demo %s` brings it about", strings.ToLower(l), l), w)
		}
	}
	_, err := fmt.Fprint(u.out, b.String())
	return err
}

func label(k diagnose.DocKey) string {
	if k.Unit == "" {
		return k.Key
	}
	return k.Key + " (" + k.Unit + ")"
}

// hang writes a text with a hanging indent.
func hang(b *strings.Builder, first, text string, width int) {
	blank := strings.Repeat(" ", len([]rune(first)))
	for i, line := range render.Wrap(render.Safe(text), width-len([]rune(first))) {
		if i > 0 {
			first = blank
		}
		b.WriteString(strings.TrimRight(first+line, " ") + "\n")
	}
}
