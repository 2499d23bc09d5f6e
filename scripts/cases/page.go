package main

import (
	"errors"
	"fmt"
	"strings"
)

// A page is markdown with blocks that are made:
//
//	<!-- demo D-syn -->
//	(made: the command, its output, and what it says for --check)
//	<!-- end demo -->
const (
	opens  = "<!-- demo "
	closes = "<!-- end demo -->"
	saying = "<!-- says"
)

type page struct {
	parts []part
}

// part is text as it is, or a block.
type part struct {
	text  string
	block *block
}

type block struct {
	demo   string // the case
	output string // of tcptrace, as the page shows it
	said   []said
}

func (p *page) blocks() []*block {
	var out []*block
	for _, x := range p.parts {
		if x.block != nil {
			out = append(out, x.block)
		}
	}
	return out
}

func parse(text string) (*page, error) {
	p := &page{}
	for {
		before, rest, found := strings.Cut(text, opens)
		p.parts = append(p.parts, part{text: before})
		if !found {
			return p, nil
		}
		head, rest, ok := strings.Cut(rest, " -->\n")
		if !ok || head == "" || strings.ContainsAny(head, " \n") {
			return nil, fmt.Errorf("a block that does not begin with %sCASE -->", opens)
		}
		body, rest, ok := strings.Cut(rest, closes)
		if !ok {
			return nil, fmt.Errorf("the block of demo %s has no end", head)
		}
		b := &block{demo: head}
		if err := b.parse(body); err != nil {
			return nil, fmt.Errorf("the block of demo %s: %w", head, err)
		}
		p.parts = append(p.parts, part{block: b})
		text = rest
	}
}

func (b *block) parse(body string) error {
	if strings.TrimSpace(body) == "" {
		return nil // nothing was made yet
	}
	fenced, rest, ok := strings.Cut(body, "```console\n$ "+b.command()+"\n")
	if !ok || fenced != "" {
		return errors.New("it does not begin with its command")
	}
	b.output, rest, ok = strings.Cut(rest, "```\n")
	if !ok {
		return errors.New("the output has no end")
	}
	rest, ok = strings.CutPrefix(rest, saying+"\n")
	if !ok {
		return errors.New("what it says is missing")
	}
	for line := range strings.Lines(rest) {
		line = strings.TrimSuffix(line, "\n")
		if line == "-->" {
			return nil
		}
		s, err := parseSaid(line)
		if err != nil {
			return err
		}
		b.said = append(b.said, s)
	}
	return errors.New("what it says has no end")
}

func (b *block) command() string { return "sudo tcptrace demo " + b.demo }

func (p *page) String() string {
	var s strings.Builder
	for _, x := range p.parts {
		if x.block == nil {
			s.WriteString(x.text)
			continue
		}
		b := x.block
		s.WriteString(opens + b.demo + " -->\n")
		if b.output != "" {
			s.WriteString("```console\n$ " + b.command() + "\n" + b.output + "```\n" + saying + "\n")
			for _, v := range b.said {
				s.WriteString(v.String() + "\n")
			}
			s.WriteString("-->\n")
		}
		s.WriteString(closes)
	}
	return s.String()
}
